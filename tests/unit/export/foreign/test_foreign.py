"""Base graphs made elsewhere: recognised, checked against the checkpoint, and then like our own."""

import dataclasses
import importlib.util
import json
import shutil

import onnx_ir as ir
import pytest
import torch
from foreign_folders import (
    assert_same,
    build_genai,
    in_transformers_js,
    loaded,
    merged,
    save_text_tower,
    shaken,
)
from onnxruntime.quantization import QuantType, quantize_dynamic

from safetykit.adapters.errors import InvalidArtifact, UnsupportedGraph, UsageError, WrongBase
from safetykit.export.base.own import save_graph
from safetykit.export.manifest import CHECKPOINT, GRAPHS, LAYOUT, read_manifest, write_manifest
from safetykit.export.pipeline.export import export_onnx
from safetykit.toolkit.model.vlm import VLM

has_genai = importlib.util.find_spec("onnxruntime_genai") is not None


needs_genai = pytest.mark.skipif(not has_genai, reason="onnxruntime-genai is not installed")


GUARD = ("GatedSteering", "decoder.layers.1", "last", "prefill")


@pytest.fixture(scope="module")
def wide(vlm, tmp_path_factory):
    """The same weights as fewer heads of 16: GroupQueryAttention takes no narrower ones."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    shutil.copytree(vlm.path, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    (folder / "config.json").write_text(json.dumps(config))
    return VLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tower(wide, tmp_path_factory):
    return save_text_tower(wide, tmp_path_factory.mktemp("tower"))


@pytest.fixture(scope="module")
def genai(tower, tmp_path_factory):
    built = {}

    def build(precision):
        if precision not in built:
            built[precision] = build_genai(tower, tmp_path_factory.mktemp("genai") / precision, precision)
        return built[precision]

    return build


@needs_genai
@pytest.mark.slow
def test_a_decoder_of_the_genai_builder_is_the_checkpoint_s(wide, genai, imported):
    """Packed projections, fused norms, positions from the mask, and attention that knows no padding on the left."""
    onnx_vlm, manifest = imported(genai("fp32"), model=wide)
    found = manifest.foreign
    assert found.layout == "genai" and found.rows_alone and not found.last_logits
    assert found.sources == {"decoder": "model.onnx", "embed_tokens": CHECKPOINT, "vision_encoder": CHECKPOINT}
    assert found.weights.unread == () and found.weights.exact == 7 * 3 + 1 + 2 * 3 + 1
    assert (onnx_vlm.path / "decoder.onnx.data").read_bytes() == (genai("fp32") / "model.onnx.data").read_bytes()
    assert_same(wide, onnx_vlm)


@needs_genai
@pytest.mark.slow
def test_an_adapter_goes_into_an_int4_decoder_of_the_genai_builder(
    wide, genai, from_checkpoint, make_adapter, tmp_path
):
    adapter = make_adapter(GUARD)
    adapter = dataclasses.replace(adapter, info=adapter.info.model_copy(update={"base": wide.base}))
    result = export_onnx(wide, [adapter], tmp_path / "out", precision="int4", base_onnx=genai("int4"))
    report, weights = result.parity, result.manifest.foreign.weights
    assert report.passed and weights.nearest == 7 * 3 + 1 and weights.exact == 7
    assert report.worst("drift") > 100 * report.worst("logits"), (
        "rounding to 4 bits shows, the adapter's error does not"
    )
    (bypass,) = [check for check in report.checks if "bypassed" in check.case]
    assert bypass.error == bypass.limit == 0 and bypass.scale > 0


def test_a_decoder_with_token_ids_in_one_file(vlm, optimum, imported):
    onnx_vlm, manifest = imported(optimum)
    assert manifest.foreign.layout == "optimum" and not manifest.foreign.rows_alone
    assert "token embedding split off" in manifest.foreign.changes[0]
    assert manifest.graphs["decoder"].inputs[0] == "inputs_embeds"
    assert_same(vlm, onnx_vlm)


def test_a_repository_of_transformers_js_brings_all_three_graphs(vlm, base_folder, imported, tmp_path):
    decoder = loaded(base_folder / "decoder.onnx")
    keep = ir.val("num_logits_to_keep", ir.DataType.INT64, [])
    decoder.graph.inputs.append(keep)
    onnx_vlm, manifest = imported(in_transformers_js(base_folder, tmp_path / "js", decoder=decoder))
    assert manifest.foreign.sources == {name: f"{name}.onnx" for name in GRAPHS[:2]} | {
        "decoder": "decoder_model_merged.onnx"
    }
    assert "num_logits_to_keep fixed at 0" in manifest.foreign.changes
    assert_same(vlm, onnx_vlm)


def test_a_merged_decoder_becomes_its_body_with_a_cache(vlm, base_folder, imported, tmp_path):
    decoder = merged(base_folder / "decoder.onnx")
    onnx_vlm, manifest = imported(in_transformers_js(base_folder, tmp_path / "js", decoder=decoder))
    assert "stands for both" in manifest.foreign.changes[0]
    assert not any(node.op_type == "If" for node in ir.load(onnx_vlm.path / LAYOUT.decoder).graph)
    assert_same(vlm, onnx_vlm)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"one_token": True}, "cannot read a prompt|differently"), ({"extra": 0.1}, "read a prompt differently")],
)
def test_a_merged_decoder_whose_bodies_differ_is_refused(base_folder, imported, tmp_path, options, reason):
    decoder = merged(base_folder / "decoder.onnx", **options)
    with pytest.raises(UnsupportedGraph, match=reason):
        imported(in_transformers_js(base_folder, tmp_path / "js", decoder=decoder))


@pytest.mark.parametrize("share", [1e-4, 1e-2, 1.0])
def test_a_sibling_is_the_wrong_base(base_folder, imported, tmp_path, share):
    decoder = shaken(loaded(base_folder / "decoder.onnx"), share)
    folder = in_transformers_js(base_folder, tmp_path / "js", decoder=decoder)
    with pytest.raises(WrongBase, match="is not the checkpoint's|were found in the base graph") as caught:
        imported(folder)
    assert caught.value.exit_code == 4


@needs_genai
@pytest.mark.slow
@pytest.mark.parametrize("share", [0.01, 0.1])
def test_a_sibling_is_the_wrong_base_in_four_bits_too(wide, genai, imported, share):
    """Its norms are the same, and its weights have moved by far less than the step of a code."""
    folder = genai("int4")
    generator = torch.Generator().manual_seed(0)
    weight = wide.parts.layers[2].mlp.down_proj.weight
    kept = weight.detach().clone()
    try:
        weight.data += share * kept.std() * torch.randn(kept.shape, generator=generator)
        with pytest.raises(WrongBase, match=r"layers.2.mlp.down_proj.weight .* another than the nearest code"):
            imported(folder, "int4", model=wide)
    finally:
        weight.data.copy_(kept)


def config(**decoder):
    return {"genai_config.json": {"model": {"decoder": decoder}}}


def test_what_is_in_the_folder_decides_what_is_said(base_folder, optimum, imported, tmp_path):
    cases = {
        "absent": (None, UsageError, "There is no folder"),
        "empty": ({}, UsageError, "The layout of .* is not known"),
        "split": ({"decoder_with_past_model.onnx": b""}, UsageError, "two decoders"),
        "pipeline": (config(pipeline=[]), UsageError, "several graphs"),
        "damaged": ({"genai_config.json": b"{"}, InvalidArtifact, "names no decoder"),
        "missing": (config(filename="m.onnx"), InvalidArtifact, "not there"),
        "escape": (config(filename="../m.onnx"), InvalidArtifact, "not there"),
        "garbage": ({"model.onnx": b"garbage"}, InvalidArtifact, "is no ONNX graph"),
    }
    for name, (files, error, reason) in cases.items():
        folder = tmp_path / name
        if files is not None:
            folder.mkdir()
        for file, content in (files or {}).items():
            (folder / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        with pytest.raises(error, match=reason):
            imported(folder)
    with pytest.raises(UsageError, match="is fp32, not int4.*--precision fp32"):
        imported(optimum, "int4")
    with pytest.raises(UsageError, match="has no int8 decoder, only decoder_model_merged.onnx"):
        imported(in_transformers_js(base_folder, tmp_path / "js"), "int8")


@pytest.mark.slow
def test_an_adapted_decoder_is_no_base(vlm, optimum, imported, make_adapter, from_checkpoint, tmp_path):
    export_onnx(vlm, [make_adapter(GUARD)], tmp_path / "out", base_onnx=optimum)
    folder = tmp_path / "again"
    folder.mkdir()
    for name in ("decoder.onnx.data", "decoder.adapter.data"):
        if (tmp_path / "out" / name).exists():
            shutil.copyfile(tmp_path / "out" / name, folder / name)
    shutil.copyfile(tmp_path / "out" / "decoder.onnx", folder / "model.onnx")
    with pytest.raises(UnsupportedGraph, match="already holds a safetykit adapter"):
        imported(folder)


@pytest.mark.slow
def test_an_eight_bit_decoder_is_measured_by_its_drift(vlm, base_folder, make_adapter, from_checkpoint, tmp_path):
    """Its activations are rounded too, so nothing end to end can be exact; the op and all the rest of the graph are."""
    folder = in_transformers_js(base_folder, tmp_path / "js")
    target = folder / "onnx" / "decoder_model_merged_quantized.onnx"
    quantize_dynamic(base_folder / "decoder.onnx", target, weight_type=QuantType.QInt8)
    result = export_onnx(vlm, [make_adapter(GUARD)], tmp_path / "out", precision="int8", base_onnx=folder)
    kinds = {check.kind for check in result.parity.checks}
    assert {"drift", "op", "adapter-off"} <= kinds and "logits" not in kinds
    assert result.parity.worst("adapter-off") == 0 < result.parity.worst("drift")
    assert result.manifest.foreign.weights.nearest == 7 * 3 + 1
    assert result.manifest.foreign.sources["embed_tokens"] == "embed_tokens.onnx"


def test_graphs_of_the_folder_that_cannot_be_used_are_taken_from_the_checkpoint(vlm, base_folder, imported, tmp_path):
    folder = in_transformers_js(base_folder, tmp_path / "js")
    other = loaded(base_folder / "vision_encoder.onnx")
    other.graph.inputs[0].name = "pixels"
    save_graph(other, folder / "onnx" / "vision_encoder.onnx")
    onnx_vlm, manifest = imported(folder)
    assert manifest.foreign.sources["vision_encoder"] == CHECKPOINT
    assert "vision_encoder.onnx not used: it takes pixels" in manifest.foreign.changes[-1]
    assert_same(vlm, onnx_vlm, steps=1)


def test_a_vision_encoder_of_another_model_is_the_wrong_base(base_folder, imported, tmp_path):
    folder = in_transformers_js(base_folder, tmp_path / "js")
    save_graph(shaken(loaded(base_folder / "vision_encoder.onnx"), 0.5), folder / "onnx" / "vision_encoder.onnx")
    with pytest.raises(WrongBase, match="vision_encoder.onnx gives other values than the checkpoint"):
        imported(folder)


def test_the_manifest_of_a_foreign_base_is_read_back(imported, optimum):
    onnx_vlm, manifest = imported(optimum)
    write_manifest(manifest, onnx_vlm.path)
    assert read_manifest(onnx_vlm.path).foreign == manifest.foreign
