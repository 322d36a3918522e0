"""What can be known before an export starts is refused within two seconds, and nothing is written."""

import json
import shutil
import time

import pytest

from safetykit.adapters.errors import SafetykitError, UsageError, WrongBase
from safetykit.export.manifest import read_manifest, write_manifest
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.pipeline.options import ExportOptions
from safetykit.export.pipeline.requirements import require_computable
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.index.caption_index import CaptionIndex
from safetykit.toolkit.model.vlm import VLM

GATED = ("TargetSteering", "decoder.layers.1", "last", "prefill")
PLAIN = ("SubspaceProjection", "decoder.layers.1", "all", "both")
SECONDS = 2.0  # of this process, so that a busy machine does not fail the test


@pytest.fixture(scope="module")
def record():
    return Record(id="a", prompt="what is this thing ?", label="harmful", split="test", response="so")


@pytest.fixture
def refused(vlm, tmp_path, monkeypatch, make_adapter, base_folder):
    """Plan an export from the checkpoint's folder, time the refusal, and see that no weights were read."""
    make_adapter(), base_folder  # made before the clock starts

    def run(adapters, match, kind=UsageError, model=None, **options) -> SafetykitError:
        monkeypatch.setattr(VLM, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        start = time.process_time()
        with pytest.raises(kind, match=match) as caught:
            export_onnx(model or vlm.path, adapters, tmp_path / "out", **options)
        assert time.process_time() - start < SECONDS
        assert caught.value.next_step
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        return caught.value

    return run


def test_a_gated_adapter_cannot_be_folded(refused, make_adapter):
    refused([make_adapter(GATED)], "TargetSteering at decoder.layers.1.*is not affine", mode="fold")


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_nothing_is_folded_into_rounded_weights(refused, make_adapter, precision):
    folded = make_adapter(("SubspaceProjection", "decoder.layers.0.mlp", "all", "both"))
    refused([folded], f"Folding into {precision}", mode="fold", precision=precision)


def test_an_adapter_without_intervention_has_nothing_to_fold(refused, make_detector):
    refused([make_detector()], "nothing to fold", mode="fold")


@pytest.mark.parametrize("layout", ["transformers.js", "genai"])
def test_a_runtime_that_reads_no_risk_needs_enforcing(refused, make_detector, layout):
    refused([make_detector()], "--enforce", layout=layout)


def test_a_provider_that_is_not_there(refused, make_adapter):
    refused([make_adapter(PLAIN)], "does not give TensorrtExecutionProvider", providers=["TensorrtExecutionProvider"])


def test_a_layer_that_is_not_there(refused, make_adapter):
    deep = make_adapter(("SubspaceProjection", "decoder.layers.9", "all", "both"))
    refused([deep], "the decoder has 3 layers")


def test_a_spread_model_in_16_bits_cannot_be_compared_in_32(refused, bf16_checkpoint, random_checkpoint):
    said = "a model that is spread over devices only in the type it is loaded in: .* has bfloat16"
    error = refused([], said, model=bf16_checkpoint, device_map="auto")
    assert "--dtype float32" in error.next_step and "--dtype bfloat16" in error.next_step
    for dtype in ("float32", "bfloat16"):
        require_computable(bf16_checkpoint, ExportOptions(device_map="auto", dtype=dtype))
    require_computable(bf16_checkpoint, ExportOptions(device="cpu"))
    require_computable(random_checkpoint, ExportOptions(device_map="auto"))


def test_int8_without_base_graphs(refused, make_adapter):
    refused([make_adapter(PLAIN)], "does not quantise to int8", precision="int8")


def test_two_detectors(refused, make_detector):
    refused([make_detector(), make_detector()], "both decide when to refuse")


def test_a_detector_that_was_not_fitted_under_its_corrector(refused, make_adapter, make_detector, tmp_path):
    folders = [make_adapter(PLAIN).save(tmp_path / "guard"), make_detector().save(tmp_path / "sasa")]
    error = refused(folders, f"beside test \\({tmp_path}/guard\\)")
    assert f"--with {tmp_path / 'guard'}" in error.next_step and "--allow-uncorrected-detector" in error.next_step


def test_enforcing_without_a_detector(refused, make_adapter):
    refused([make_adapter(PLAIN)], "no detector whose refusal could be enforced", enforce=True)


def test_an_output_folder_that_is_taken(refused, make_adapter, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    refused([make_adapter(PLAIN)], "not empty")


def test_a_picture_that_is_missing(refused, make_adapter, tmp_path):
    line = {"id": "b", "prompt": "what ?", "image": "gone.png", "label": "harmful", "split": "test", "carrier": "image"}
    (tmp_path / "records.jsonl").write_text(json.dumps(line))
    refused([make_adapter(PLAIN)], r"Record b \(.*:1\): There is no picture", data=str(tmp_path / "records.jsonl"))


def test_a_checkpoint_without_template(refused, vlm, make_adapter, tmp_path):
    checkpoint = shutil.copytree(vlm.path, tmp_path / "checkpoint")
    (checkpoint / "chat_template.jinja").unlink()
    refused([make_adapter(PLAIN)], "template", model=checkpoint, allow_wrong_base=True)


@pytest.mark.parametrize("name", ["mllama", "aria"])  # by its family, by what its code reads
def test_an_architecture_that_is_not_exported(refused, vlm, make_adapter, tmp_path, name):
    checkpoint = shutil.copytree(vlm.path, tmp_path / "checkpoint")
    config = json.loads((checkpoint / "config.json").read_text())
    config["model_type"] = name
    (checkpoint / "config.json").write_text(json.dumps(config))
    refused(
        [make_adapter(PLAIN)], f"architecture '{name}'", kind=SafetykitError, model=checkpoint, allow_wrong_base=True
    )


def test_an_adapter_of_a_model_of_another_shape(refused, random_checkpoint, make_adapter):
    refused([make_adapter(PLAIN)], "3 layers of width 32", kind=WrongBase, model=random_checkpoint)


@pytest.mark.parametrize(
    ("change", "match", "kind"),
    [
        ({"precision": "fp16"}, "are fp16, not fp32", UsageError),
        ({"mode": "bake"}, "hold an adapter already", UsageError),
        ({"base": "f" * 64}, "were exported from model ffff", WrongBase),
    ],
)
def test_base_graphs_that_do_not_fit(refused, base_folder, make_adapter, tmp_path, change, match, kind):
    folder = shutil.copytree(base_folder, tmp_path / "base")
    manifest = read_manifest(folder)
    if "base" in change:
        change = {"base": manifest.base.model_copy(update={"fingerprint": change["base"]})}
    write_manifest(manifest.model_copy(update=change), folder)
    refused([make_adapter(PLAIN)], match, kind, base_onnx=folder)


def test_base_graphs_that_are_not_there(refused, make_adapter, tmp_path):
    refused([make_adapter(PLAIN)], "There is no folder", base_onnx=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    refused([make_adapter(PLAIN)], "layout of .* is not known", base_onnx=tmp_path / "empty")


def test_recalibration_needs_thresholds_and_records(refused, make_adapter, make_detector, record):
    refused([make_detector()], "--recalibrate needs records", recalibrate=True)
    refused([make_adapter(PLAIN)], "have no threshold", recalibrate=True, records=[record])
    refused([make_detector()], "holds no record", recalibrate=True, records=[record])
    both = {"data": "reference", "split": "calibration", "recalibrate": True}
    refused([make_detector()], "cannot both set thresholds", **both)


@pytest.mark.parametrize(
    ("option", "value", "needed"),
    [
        ("split", "calibration", "--data"),
        ("limit", 3, "--data"),
        ("max_new_tokens", 32, "records"),
        ("max_flips", 0.1, "records"),
        ("allow_uncorrected_detector", True, "a detector"),
        ("gate_state", "cache", "a gate that is held"),
    ],
)
def test_an_option_that_cannot_act_is_refused_by_name(refused, make_adapter, option, value, needed):
    refused([make_adapter(PLAIN)], f"{option} does nothing without .*{needed}", **{option: value})


def test_an_index_that_nothing_searches(refused, make_adapter, monkeypatch):
    monkeypatch.setattr(CaptionIndex, "load", lambda _: None)
    refused([make_adapter(PLAIN)], "external_index does nothing without an adapter that searches", external_index="i")


@pytest.mark.parametrize(
    ("option", "value"), [("mode", "bake"), ("enforce", True), ("gate_state", "cache"), ("allow_wrong_base", True)]
)
def test_an_option_about_adapters_cannot_act_without_one(refused, option, value):
    refused([], f"{option} does nothing without an adapter", **{option: value})


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("mode", "hotswap", "Did you mean 'hot-swap'?"),
        ("precision", "int5", "Did you mean 'int8'?"),
        ("layout", "transformersjs", "Did you mean 'transformers.js'?"),
        ("gate_state", "cash", "Did you mean 'cache'?"),
        ("split", "tset", "Did you mean 'test'?"),
        ("max_flips", 2, "at most 1"),
        ("limit", 0, "at least 1"),
        ("base_model", "my model", "such as org/name"),
        ("base_license", "Apache 2", "such as apache-2.0"),
        ("presicion", "fp16", "Did you mean 'precision'?"),
    ],
)
def test_values_and_names_that_are_none_are_refused_with_the_nearest(refused, make_adapter, option, value, hint):
    error = refused([make_adapter(PLAIN)], str(value) if option != "presicion" else option, **{option: value})
    assert hint in error.next_step


def test_keywords_win_over_options():
    options = ExportOptions(precision="fp16", limit=3, data="reference")
    changed = ExportOptions.of(options, {"precision": "int4"})
    assert (changed.precision, changed.limit) == ("int4", 3)
    assert ExportOptions.of(None, {}).model_fields_set == set()


def test_records_are_given_once(refused, make_adapter):
    refused([make_adapter(PLAIN)], "Both records and data", data="reference", records=load_records_of_one())


def load_records_of_one():
    from safetykit.toolkit.reference import records_path

    return load_records(records_path("test"))[:1]
