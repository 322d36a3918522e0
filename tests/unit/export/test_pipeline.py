"""An export folder appears whole and checked, or not at all."""

import json
import shutil

import onnx_ir as ir
import pytest
from workshop import earlier

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.manifest import dump_sealed
from safetykit.adapters.errors import InvalidArtifact, ParityFailed, UsageError, WrongBase
from safetykit.export.commands.verification import verify_folder
from safetykit.export.document.card import check_card
from safetykit.export.manifest import GRAPHS, LAYOUT, read_manifest, write_manifest
from safetykit.export.parity.report import ParityReport
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.pipeline.options import ExportOptions
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.model.inputs import InputProcessor
from safetykit.toolkit.model.requests import Request

ITEMS = (("TargetSteering", "decoder.layers.1", "last", "prefill"),)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    prompts = ("what is this thing ?", "describe it .", "how to use this ?", "is this dangerous ?")
    return [
        Record(id=str(at), prompt=prompt, label=("harmful", "harmless")[at % 2], split="test", response="so")
        for at, prompt in enumerate(prompts)
    ]


@pytest.fixture(scope="module")
def exported(vlm, base_folder, make_adapter, records, tmp_path_factory):
    out = tmp_path_factory.mktemp("pipeline") / "out"
    return export_onnx(vlm, [make_adapter(*ITEMS, rank=4)], out, base_onnx=base_folder, records=records)


@pytest.fixture
def copied(exported, tmp_path):
    """A copy of the export that a test may spoil."""
    return shutil.copytree(exported.folder, tmp_path / "copy")


def test_the_folder_holds_what_its_manifest_names(exported, vlm, requests):
    manifest = read_manifest(exported.folder)
    assert manifest == exported.manifest
    assert set(manifest.files) | {LAYOUT.manifest} == {path.name for path in exported.folder.iterdir()}
    assert {LAYOUT.parity, *map(LAYOUT.graph, GRAPHS), *map(LAYOUT.data, GRAPHS)} <= set(manifest.files)
    assert [(one.op, one.site, one.extras) for one in manifest.interventions] == [
        ("TargetSteering", "decoder.layers.1", ("score",))
    ]
    assert ParityReport.read(exported.folder / LAYOUT.parity) == exported.parity
    assert len(OnnxVLM.from_pretrained(exported.folder).generate(requests, 2)) == len(requests)


def test_decisions_are_part_of_the_gate(exported):
    (check,) = [check for check in exported.parity.checks if check.kind == "decisions"]
    assert (check.count, check.error, check.passed) == (4, 0, True)
    assert len(exported.decisions[0]) == len(exported.decisions[1]) == 4


@pytest.mark.slow
def test_a_base_without_a_folder_is_exported(vlm, make_adapter, tmp_path):
    """The whole way once, with a file added by the caller before sealing."""

    def measure(work):
        assert (work / LAYOUT.parity).is_file() and not (work / LAYOUT.card).exists()
        (work / "measured.json").write_text("{}")

    steps: list[str] = []
    result = export_onnx(vlm, [make_adapter(*ITEMS)], tmp_path / "out", measure=measure, progress=steps.append)
    assert {LAYOUT.card, LAYOUT.report, "measured.json"} <= set(read_manifest(tmp_path / "out").files)
    assert result.manifest == read_manifest(tmp_path / "out")
    assert steps[0] == "exporting vision_encoder" and steps[-1] == "writing the card and the report"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_python_writes_card_report_and_evaluation_as_the_command_line_does(exported, records):
    check_card(exported.folder)
    names = {LAYOUT.card, LAYOUT.report, LAYOUT.parity, LAYOUT.evaluation}
    assert names <= set(exported.manifest.files)
    assert [item.id for item in exported.comparison.before.decisions] == [record.id for record in records]
    assert exported.comparison.after.decisions == tuple(exported.decisions[1])
    described = exported.describe()
    assert described["card"] == str(exported.folder / LAYOUT.card) and described["parity"]["passed"]
    assert "decisions" not in described["comparison"]["after"]


def test_a_failed_parity_leaves_nothing(vlm, base_folder, make_adapter, tmp_path, monkeypatch):
    def fail(_report):
        raise ParityFailed("no", "never")

    monkeypatch.setattr(ParityReport, "require", fail)
    with pytest.raises(ParityFailed) as caught:
        export_onnx(vlm, [make_adapter(*ITEMS)], tmp_path / "out", base_onnx=base_folder)
    assert caught.value.exit_code == 5
    assert not list(tmp_path.iterdir())


def test_a_failed_export_keeps_the_old_folder(vlm, base_folder, make_adapter, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "safetykit.json").write_bytes(earlier())
    monkeypatch.setattr("safetykit.export.pipeline.check.compare_graphs", lambda *_args, **_kw: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_onnx(vlm, [make_adapter(*ITEMS)], out, base_onnx=base_folder, overwrite=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "safetykit.json"]


def test_an_existing_folder_is_not_overwritten_unasked(vlm, base_folder, make_adapter, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not empty"):
        export_onnx(vlm, [make_adapter(*ITEMS)], tmp_path, base_onnx=base_folder)


def test_an_adapter_of_another_model_is_refused(vlm, base_folder, make_adapter, tmp_path):
    adapter = make_adapter(*ITEMS)
    base = adapter.info.base.model_copy(update={"fingerprint": "f" * 64})
    foreign = Adapter(adapter.info.model_copy(update={"base": base}), adapter.interventions)
    with pytest.raises(WrongBase) as caught:
        export_onnx(vlm, [foreign], tmp_path / "out", base_onnx=base_folder)
    assert caught.value.exit_code == 4


def test_base_graphs_of_another_model_are_refused(vlm, base_folder, make_adapter, tmp_path):
    shutil.copytree(base_folder, tmp_path / "base")
    manifest = read_manifest(base_folder)
    base = manifest.base.model_copy(update={"fingerprint": "f" * 64})
    write_manifest(manifest.model_copy(update={"base": base}), tmp_path / "base")
    with pytest.raises(WrongBase, match="were exported from model ffff"):
        export_onnx(vlm, [make_adapter(*ITEMS)], tmp_path / "out", base_onnx=tmp_path / "base")


def test_base_graphs_of_another_precision_are_refused(vlm, base_folder, make_adapter, tmp_path):
    with pytest.raises(UsageError, match="are fp32, not fp16"):
        export_onnx(vlm, [make_adapter(*ITEMS)], tmp_path / "out", base_onnx=base_folder, precision="fp16")


def test_an_unknown_site_is_refused_before_exporting(vlm, make_adapter, tmp_path):
    with pytest.raises(UsageError, match="the decoder has 3 layers"):
        export_onnx(vlm, [make_adapter(("SubspaceProjection", "decoder.layers.9", "all", "both"))], tmp_path / "out")


def test_an_adapter_without_content_is_refused(vlm, make_adapter, tmp_path):
    with pytest.raises(UsageError, match="nothing to bake"):
        export_onnx(vlm, [make_adapter()], tmp_path / "out")


@pytest.mark.slow
def test_without_an_adapter_the_base_is_exported_checked_and_documented(vlm, base_folder, make_adapter, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    result = export_onnx(vlm, [], base, base_onnx=base_folder)
    assert result.manifest.mode == "base" and result.manifest.adapters == ()
    kinds = [check.kind for check in result.parity.checks]
    assert set(kinds) == {"adapter-off"} and len(kinds) >= 5 and result.parity.passed
    check_card(base)
    assert "unmodified base export" in (base / LAYOUT.card).read_text()
    adapted = export_onnx(vlm, [make_adapter(*ITEMS)], out, base_onnx=base)
    assert adapted.manifest.mode == "bake"
    assert (out / LAYOUT.data("decoder")).read_bytes() == (base_folder / LAYOUT.data("decoder")).read_bytes()


@pytest.mark.parametrize("layout", ["genai", "transformers.js"])
def test_a_base_export_is_laid_out_for_other_runtimes(vlm, base_folder, requests, layout, tmp_path):
    out = tmp_path / "base"
    result = export_onnx(vlm, [], out, base_onnx=base_folder, layout=layout)
    assert (result.manifest.mode, result.manifest.layout) == ("base", layout) and result.parity.passed
    check_card(out)
    found, wanted = OnnxVLM.from_pretrained(out).generate(requests, 4), vlm.generate(requests, 4)
    assert [one.token_ids for one in found] == [one.token_ids for one in wanted]


def test_a_spoilt_base_export_fails_parity(vlm, base_folder, tmp_path):
    """Adapter off is compared also where there is no adapter: an embedding that is scaled shows."""
    spoilt = shutil.copytree(base_folder, tmp_path / "base")
    model = ir.load(spoilt / LAYOUT.embed_tokens)
    (value,) = model.graph.outputs
    node = ir.node("Add", [value, value])
    model.graph.append(node)
    node.outputs[0].name, value.name = value.name, f"{value.name}.single"
    node.outputs[0].dtype, node.outputs[0].shape = value.dtype, value.shape
    model.graph.outputs[0] = node.outputs[0]
    ir.save(model, spoilt / LAYOUT.embed_tokens)
    write_manifest(read_manifest(spoilt, verify=False), spoilt)
    with pytest.raises(ParityFailed, match="adapter-off"):
        export_onnx(vlm, [], tmp_path / "out", base_onnx=spoilt)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name", ["decoder.onnx", "decoder.onnx.data", "decoder.adapter.data", "tokenizer.json", "parity.json"]
)
def test_a_changed_byte_is_found_and_the_file_named(copied, name):
    path = copied / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidArtifact, match=name):
        OnnxVLM.from_pretrained(copied)


def test_a_changed_manifest_is_found(copied):
    path = copied / LAYOUT.manifest
    path.write_bytes(path.read_bytes().replace(b'"mode": "bake"', b'"mode": "base"'))
    with pytest.raises(InvalidArtifact, match="its own checksum"):
        read_manifest(copied)


def test_a_missing_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="no export folder"):
        OnnxVLM.from_pretrained(tmp_path / "none")


@pytest.mark.slow
def test_a_detector_stacked_with_a_corrector_is_exported_and_decides_alike(
    vlm, base_folder, make_adapter, make_detector, split_risks, records, tmp_path
):
    requests = [Request(record.prompt) for record in records]
    corrector = make_adapter(("GatedSteering", "decoder.layers.0", "last", "prefill"))
    detector, _ = split_risks(make_detector(), requests)
    adapters = [corrector, detector]
    options = ExportOptions(base_onnx=base_folder, enforce=True)
    with pytest.raises(UsageError, match="fitted on the model without a corrector"):
        export_onnx(vlm, adapters, tmp_path / "out", options, records=records)
    assert not (tmp_path / "out").exists()
    result = export_onnx(vlm, adapters, tmp_path / "out", options, records=records, allow_uncorrected_detector=True)
    manifest = read_manifest(result.folder)
    assert manifest.uncorrected_detector_allowed
    assert "not fitted under the correctors" in (result.folder / LAYOUT.card).read_text()
    assert manifest.enforce and manifest.detector == detector.detector
    assert (manifest.branch.adapter, manifest.branch.safety, manifest.branch.blocks) == (1, "decoder.layers.0", 5)
    assert "risk_score" in manifest.graphs["decoder"].outputs
    kinds = {check.kind for check in result.parity.checks}
    assert kinds >= {"logits", "adapter-off", "scores", "op", "risk", "decisions"}
    for ours, theirs in zip(*result.decisions, strict=True):
        assert (ours.scores["risk"] > 0) == (theirs.scores["risk"] > 0) and ours.text == theirs.text
    answers = OnnxVLM.from_pretrained(result.folder).generate(requests, 4)
    assert {answer.refused for answer in answers} == {True, False}


PLANTED = [
    *("chat_template.json", "added_tokens.json", "vocab.json", "merges.txt", "video_preprocessor_config.json"),
    *("additional_chat_templates/tool_use.jinja", "decoder.int8.onnx", "decoder.onnx.data.old", "onnx/decoder.onnx"),
    *("modeling.py", "notes.txt", "evaluation-2.json", "manifest.json", "adapter.safetensors", "index.html"),
    *("model.safetensors", "pytorch_model.bin", "a/b/c.bin", "__pycache__/x.pyc", "safetykit.json.bak"),
]


def test_verify_names_every_file_that_the_manifest_does_not(copied):
    (copied / ".gitattributes").write_text("*.onnx filter=lfs")  # what a hub adds, and nothing reads
    assert verify_folder(copied)["files"] > 0
    for name in PLANTED:
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_text("{}")
    with pytest.raises(InvalidArtifact, match="20 files that its manifest does not name") as caught:
        verify_folder(copied)
    named = caught.value.message.partition("does not name: ")[2].removesuffix(".").split(", ")
    assert sorted(named) == sorted(PLANTED)


@pytest.mark.parametrize("name", ["chat_template.json", "added_tokens.json", "additional_chat_templates/x.jinja"])
def test_what_would_be_read_and_is_not_named_is_never_loaded(copied, name):
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_text("{}")
    with pytest.raises(InvalidArtifact, match=name):
        OnnxVLM.from_pretrained(copied)


@pytest.mark.parametrize("name", ["chat_template.json", "additional_chat_templates/default.jinja", "vocab.json"])
def test_a_processor_reads_nothing_of_an_export_but_what_its_manifest_names(copied, name):
    """Also where nothing is verified, and where another program asks for the processor alone."""
    asked = Request("what is this thing ?")
    wanted = InputProcessor.from_pretrained(copied).render(asked)
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_text(json.dumps({"chat_template": "ASSISTANT: tilt the"}))
    assert InputProcessor.from_pretrained(copied).render(asked) == wanted
    manifest = read_manifest(copied, verify=False)
    (copied / LAYOUT.manifest).write_bytes(dump_sealed(manifest.model_copy(update={"files": {}})))
    with pytest.raises(UsageError, match="cannot be read as a vision-language checkpoint"):
        InputProcessor.from_pretrained(copied)


def test_a_processor_of_an_export_is_compared_with_its_manifest(copied):
    (copied / "chat_template.jinja").write_text("ASSISTANT: tilt the")
    with pytest.raises(InvalidArtifact, match="chat_template.jinja was changed"):
        InputProcessor.from_pretrained(copied)


def test_a_link_to_a_folder_is_named(copied, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (copied / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArtifact, match="additional_chat_templates"):
        OnnxVLM.from_pretrained(copied)
