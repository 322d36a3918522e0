"""Base graphs made elsewhere that are another model, or hold weights of other places, are refused by name."""

import dataclasses
import shutil

import onnx_ir as ir
import pytest
from foreign_folders import (
    assert_same,
    in_transformers_js,
    loaded,
    shaken,
)

from safetykit.adapters.errors import InvalidArtifact, UnsupportedGraph, WrongBase
from safetykit.export.foreign.normalise import DecoderShape, normalise


def test_a_wrong_base_can_be_accepted_and_the_manifest_says_so(base_folder, imported, tmp_path):
    decoder = shaken(loaded(base_folder / "decoder.onnx"), 1e-2)
    _, manifest = imported(in_transformers_js(base_folder, tmp_path / "js", decoder=decoder), allow_wrong_base=True)
    assert any("accepted all the same" in change for change in manifest.foreign.changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_layers": 4}, "has 3 layers, the checkpoint 4"),
        ({"d_model": 48}, "inputs_embeds are 32 wide, the checkpoint's 48"),
        ({"vocabulary": 99}, "tokens large, the checkpoint's 99"),
        ({"n_kv_heads": 4}, "caches 2 heads, the checkpoint has 4"),
        ({"head_dim": 16}, "caches 8 wide heads, the checkpoint has 16"),
    ],
)
def test_another_shape_is_the_wrong_base(base_folder, changes, reason):
    model = ir.load(base_folder / "decoder.onnx")
    shape = DecoderShape(3, 2, 8, 32, next(v for v in model.graph.outputs if v.name == "logits").shape[2])
    with pytest.raises(WrongBase, match=reason):
        normalise(model, dataclasses.replace(shape, **changes))


@pytest.mark.parametrize(
    ("past", "present"),
    [("past_key_{layer}", "present_key_{layer}"), ("past.{layer}.key", "present_key_values.{layer}.key")],
)
def test_other_names_of_the_cache(base_folder, past, present):
    model = ir.load(base_folder / "decoder.onnx")
    graph = model.graph
    logits = next(value for value in graph.outputs if value.name == "logits")
    names = [value.name for value in (*graph.inputs, *graph.outputs)]
    for values, pattern in ((graph.inputs, past), (graph.outputs, present)):
        for value in values:
            parts = value.name.split(".")
            if len(parts) == 3:
                name = pattern.format(layer=parts[1]).replace("key", parts[2])
                value.name = name.replace(f"{parts[2]}_values", "key_values")
    assert [value.name for value in (*graph.inputs, *graph.outputs)] != names
    changes = normalise(model, DecoderShape(3, 2, 8, 32, logits.shape[2]))
    assert [value.name for value in (*graph.inputs, *graph.outputs)] == names and "renamed" in changes[0]


def test_an_unknown_input_is_refused_by_name(base_folder):
    model = ir.load(base_folder / "decoder.onnx")
    model.graph.inputs.append(ir.val("beam_index", ir.DataType.INT64, ["batch"]))
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    with pytest.raises(UnsupportedGraph, match="takes beam_index, which safetykit does not know how to feed"):
        normalise(model, DecoderShape(3, 2, 8, 32, logits.shape[2]))


def test_masks_of_another_type_get_a_cast(vlm, base_folder, imported, tmp_path):
    decoder = loaded(base_folder / "decoder.onnx")
    graph = decoder.graph
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    readers = list(mask.uses())
    cast = ir.node("Cast", [mask], {"to": 7})
    for reader, index in readers:
        reader.replace_input_with(index, cast.outputs[0])
    cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].dtype = "wide", mask.shape, ir.DataType.INT64
    graph.insert_before(graph[0], cast)
    mask.dtype = ir.DataType.INT32
    onnx_vlm, manifest = imported(in_transformers_js(base_folder, tmp_path / "js", decoder=decoder))
    assert "attention_mask cast from int64" in manifest.foreign.changes
    assert_same(vlm, onnx_vlm)


def moved(tensor, location, folder):
    return ir.ExternalTensor(
        location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=folder
    )


def test_two_weights_files_become_one_with_the_same_bytes(vlm, base_folder, imported, tmp_path):
    folder = in_transformers_js(base_folder, tmp_path / "js")
    path = folder / "onnx" / "decoder_model_merged.onnx"
    data = path.with_name(f"{path.name}.data")
    model = ir.load(path)
    second = path.with_name("more.data")
    shutil.copyfile(data, second)
    for at, value in enumerate(model.graph.initializers.values()):
        tensor = value.const_value
        if at % 2 and isinstance(tensor, ir.ExternalTensor):
            value.const_value = moved(tensor, second.name, path.parent)
    ir.save(model, path)
    onnx_vlm, _ = imported(folder)
    assert (
        data.read_bytes() + b"\0" * (-data.stat().st_size % 4096) + second.read_bytes()
        == (onnx_vlm.path / "decoder.onnx.data").read_bytes()
    )
    assert_same(vlm, onnx_vlm)


@pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname", "a/../../b", "C:\\\\b"])
def test_weights_outside_the_folder_are_refused(base_folder, imported, tmp_path, location):
    folder = in_transformers_js(base_folder, tmp_path / "js")
    path = folder / "onnx" / "decoder_model_merged.onnx"
    model = ir.load(path)
    values = model.graph.initializers.values()
    value = next(value for value in values if isinstance(value.const_value, ir.ExternalTensor))
    value.const_value = moved(value.const_value, location, path.parent)
    path.write_bytes(ir.serde.serialize_model(model).SerializeToString())
    with pytest.raises(InvalidArtifact, match="outside its folder|is no ONNX graph"):
        imported(folder)
