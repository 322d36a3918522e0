"""A folder arranged for another runtime holds the same weights, does the same, and is still an export."""

import dataclasses
import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest

from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.export.base.logits import give_all_logits
from safetykit.export.commands.verification import verify_folder
from safetykit.export.layouts.arrange import arrange, require_layout
from safetykit.export.layouts.check import compare_arranged, record_arranged
from safetykit.export.manifest import GRAPHS, LAYOUT, hash_folder, read_manifest
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import open_session
from safetykit.export.surgery.adapt import adapt, copy_base

ARRANGED = ("transformers.js", "genai", "triton")
EVERYWHERE = (
    ("SubspaceProjection", "decoder.layers.0", "vision", "both"),
    ("SubspaceProjection", "decoder.layers.1", "text", "both"),
    ("TargetSteering", "decoder.layers.2", "last", "prefill"),
    ("SubspaceProjection", "projector", "all", "both"),
)


@pytest.fixture(scope="module")
def export(base_folder, tmp_path_factory):
    """``export(adapter, **options)``: an export of the layout ``onnx``, without parity."""

    def make(adapter, **options):
        folder = tmp_path_factory.mktemp("plain")
        base = read_manifest(base_folder)
        copy_base(base_folder, folder, base)
        adapt(folder, base, [adapter], **options)
        return folder

    return make


@pytest.fixture(scope="module")
def plain(export, make_adapter):
    return export(make_adapter(*EVERYWHERE))


@pytest.fixture(scope="module")
def arranged(plain, tmp_path_factory):
    """Layout → folder."""

    def make(layout):
        folder = shutil.copytree(plain, tmp_path_factory.mktemp("arranged") / "folder")
        arrange(folder, read_manifest(folder), layout)
        return folder

    return {layout: make(layout) for layout in ARRANGED}


@pytest.mark.parametrize("layout", ARRANGED)
def test_every_layout_does_bit_for_bit_what_the_plain_one_does(plain, arranged, requests, layout):
    before, after = OnnxVLM.from_pretrained(plain), OnnxVLM.from_pretrained(arranged[layout])
    batches = [requests, requests[1:2]]
    gap = compare_arranged([record_arranged(before, batch) for batch in batches], after, batches)
    assert (gap.error, gap.count > 1000) == (0, True)
    assert [one.text for one in after.generate(requests, 4)] == [one.text for one in before.generate(requests, 4)]


@pytest.mark.parametrize("layout", ARRANGED)
def test_the_weights_stay_byte_for_byte(plain, arranged, layout):
    def data(folder):
        return sorted(digest for name, digest in hash_folder(folder).items() if "data" in name.rpartition("/")[2])

    assert data(arranged[layout]) == data(plain)


@pytest.mark.parametrize("layout", ARRANGED)
def test_the_manifest_knows_every_file_in_every_folder(arranged, layout, tmp_path):
    manifest = read_manifest(arranged[layout])
    assert manifest.layout == layout
    inside = {path.relative_to(arranged[layout]).as_posix() for path in arranged[layout].rglob("*") if path.is_file()}
    assert {*manifest.files, LAYOUT.manifest} == inside
    spoilt = shutil.copytree(arranged[layout], tmp_path / "spoilt")
    decoder = spoilt / manifest.graph_file("decoder")
    decoder.write_bytes(decoder.read_bytes()[:-1])
    with pytest.raises(InvalidArtifact, match=manifest.graph_file("decoder")):
        read_manifest(spoilt)


def test_a_linked_folder_is_refused(arranged, tmp_path):
    copied = shutil.copytree(arranged["transformers.js"], tmp_path / "copy")
    (copied / "onnx").rename(tmp_path / "elsewhere")
    (copied / "onnx").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArtifact, match="is a link"):
        read_manifest(copied)


def test_a_runtime_that_drops_the_mask_channel_fails(arranged):
    """Embeddings of the model's own width are refused by the graph itself, not read as text."""
    folder = arranged["transformers.js"]
    session = open_session(folder / read_manifest(folder).graph_file("decoder"))
    assert "vision_mask" not in {value.name for value in session.get_inputs()}
    feeds = {}
    for value in session.get_inputs():
        sizes = {"batch_size": 1, "sequence": 3, "past_sequence": 0, "total": 3}
        shape = [sizes[size] if isinstance(size, str) else size for size in value.shape]
        feeds[value.name] = np.ones(shape, np.float32 if "float" in value.type else np.int64)
    session.run(None, feeds)
    with pytest.raises(Exception, match="inputs_embeds"):
        session.run(None, feeds | {"inputs_embeds": feeds["inputs_embeds"][..., :-1]})


def test_without_scopes_the_decoder_stays_as_it_is_but_gives_all_logits(export, make_adapter):
    folder = export(make_adapter(("SubspaceProjection", "decoder.layers.0", "all", "both")))
    decoder = ir.load(folder / LAYOUT.decoder)
    give_all_logits(decoder)
    before = decoder.graph
    manifest = arrange(folder, read_manifest(folder), "genai")
    after = ir.load(folder / LAYOUT.decoder).graph
    assert not manifest.mask_channel
    assert [value.name for value in after.inputs] == [value.name for value in before.inputs]
    assert [node.op_type for node in after] == [node.op_type for node in before]


@pytest.mark.slow
def test_the_whole_export_checks_what_it_arranged(vlm, base_folder, make_adapter, tmp_path):
    """Parity runs before; what is arranged is compared with it, and can be checked against PyTorch again."""
    adapter, out = make_adapter(EVERYWHERE[0], EVERYWHERE[2]), tmp_path / "out"
    result = export_onnx(vlm, [adapter], out, base_onnx=base_folder, layout="transformers.js")
    (check,) = [check for check in result.parity.checks if check.kind == "layout"]
    assert (check.case, check.error, check.passed) == ("transformers.js", 0, True)
    adapter.save(tmp_path / "adapter")
    found = verify_folder(out, str(vlm.path), [tmp_path / "adapter"])
    assert found["parity"]["passed"]


class TestTransformersJs:
    def test_its_configuration_names_types_and_data_files(self, arranged):
        folder = arranged["transformers.js"]
        told = json.loads((folder / "config.json").read_text())["transformers.js_config"]
        assert told["dtype"] == {"vision_encoder": "fp32", "embed_tokens": "fp32", "decoder_model_merged": "fp32"}
        for name, chunks in told["use_external_data_format"].items():
            wanted = [f"{name}_data", *(f"{name}_data_{number}" for number in range(1, chunks))]
            assert sorted(path.name for path in (folder / "onnx").glob(f"{name}_data*")) == wanted
        pictures = json.loads((folder / "preprocessor_config.json").read_text())
        assert pictures["image_processor_type"] == "CLIPImageProcessor" and pictures["crop_size"]["height"] == 16
        assert "USER:" in json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]

    def test_a_cache_layer_with_gates_is_counted(self, export, make_adapter):
        folder = export(held(make_adapter), gate_state="cache")
        arrange(folder, read_manifest(folder), "transformers.js")
        assert json.loads((folder / "config.json").read_text())["text_config"]["num_hidden_layers"] == 4


class TestGenAI:
    def test_its_configuration_fits_the_graphs(self, arranged):
        folder = arranged["genai"]
        model = json.loads((folder / "genai_config.json").read_text())["model"]
        decoder = ir.load(folder / model["decoder"]["filename"])
        inputs = {str(value.name): value for value in decoder.graph.inputs}
        assert model["decoder"]["hidden_size"] == inputs["inputs_embeds"].shape[2] == 33  # one channel more than 32
        assert model["decoder"]["num_hidden_layers"] == 3
        key = inputs[model["decoder"]["inputs"]["past_key_names"] % 2]
        assert (model["decoder"]["num_key_value_heads"], model["decoder"]["head_size"]) == (key.shape[1], key.shape[3])
        for part in ("vision", "embedding"):
            graph = ir.load(folder / model[part]["filename"]).graph
            assert {value.name for value in graph.inputs} == set(model[part]["inputs"].values())
            assert set(model[part]["outputs"].values()) <= {value.name for value in graph.outputs}

    def test_too_few_features_are_an_error_and_none_at_all_are_not(self, arranged):
        """An answer may hold the image token, too; no picture belongs to it."""
        session = open_session(arranged["genai"] / "embedding.onnx")
        plain = open_session(arranged["genai"] / LAYOUT.embed_tokens)
        ids = {"input_ids": np.array([[4, 4, 4, 4, 6]], np.int64)}
        with pytest.raises(Exception, match="ScatterND|indices|updates"):
            session.run(None, {**ids, "image_features": np.zeros((3, 33), np.float32)})
        (found,) = session.run(None, {**ids, "image_features": np.zeros((0, 33), np.float32)})
        np.testing.assert_array_equal(found, plain.run(None, ids)[0])


class TestRefusals:
    @pytest.mark.parametrize("layout", ["transformers.js", "genai"])
    def test_a_detector_that_nobody_reads_must_be_enforced(self, make_detector, layout):
        with pytest.raises(UsageError, match="nobody there reads the detector's risk. Pass --enforce"):
            require_layout(layout, "llava", [make_detector()], enforce=False)
        require_layout(layout, "llava", [make_detector()], enforce=True)

    @pytest.mark.parametrize("layout", ARRANGED)
    def test_an_op_with_a_second_run_is_refused_by_name(self, make_adapter, layout):
        adapter = make_adapter(("SupervisedSteering", "decoder.layers.1", "last", "prefill"))
        with pytest.raises(UsageError, match="SupervisedSteering at decoder.layers.1 needs a second run"):
            require_layout(layout, "llava", [adapter], enforce=False)

    def test_an_unknown_architecture_is_refused(self, make_adapter):
        with pytest.raises(UsageError, match="not made for the architecture 'idefics3'"):
            require_layout("genai", "idefics3", [make_adapter(*EVERYWHERE)], enforce=False)
        require_layout("triton", "idefics3", [make_adapter(*EVERYWHERE)], enforce=False)

    @pytest.mark.parametrize("layout", ["transformers.js", "genai"])
    def test_gates_held_by_inputs_are_refused(self, export, make_adapter, layout):
        folder = export(held(make_adapter), gate_state="inputs")
        with pytest.raises(UsageError, match="do not feed safetykit.0.held"):
            arrange(folder, read_manifest(folder), layout)


def held(make_adapter):
    adapter = make_adapter(("GatedSteering", "decoder.layers.1", "text", "both"))
    return dataclasses.replace(
        adapter, interventions=tuple(dataclasses.replace(item, gate="held") for item in adapter.interventions)
    )


def test_the_graphs_lie_where_the_manifest_says(arranged):
    for folder in arranged.values():
        manifest = read_manifest(folder)
        assert all((folder / manifest.graph_file(name)).is_file() for name in GRAPHS)
