"""Initializers that are read while they are written hold the bytes that they would hold in memory."""

import io

import numpy as np
import onnx_ir as ir
import pytest
import torch

from safetykit.export.base import quantise as quantising
from safetykit.export.base import streamed
from safetykit.export.base.int4 import Int4Options
from safetykit.export.base.own import write_base
from safetykit.export.base.streamed import StreamedTensor
from safetykit.export.manifest import LAYOUT
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.model.weights import HeldWeight


def written(tensor) -> bytes:
    file = io.BytesIO()
    tensor.tofile(file)
    return file.getvalue()


@pytest.fixture
def small_pieces(monkeypatch):
    """A few rows at a time, in numbers that do not divide those of the matrices."""
    monkeypatch.setattr(streamed, "BUDGET", 2**10)
    monkeypatch.setattr(quantising, "_SEARCHED", 2**9)
    monkeypatch.setattr(quantising, "BUDGET", 2**14)
    monkeypatch.setattr(streamed, "chunks", lambda weight: (weight.rows(at, min(at + 7, 50)) for at in range(0, 50, 7)))


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
def test_bytes_written_in_pieces_are_the_cast_matrix(small_pieces, kind, transposed):
    matrix = torch.randn(50, 33, generator=torch.Generator().manual_seed(0))
    tensor = StreamedTensor(HeldWeight(matrix), ir.tensor_adapters.from_torch_dtype(kind), "w", transposed=transposed)
    expected = (matrix.T if transposed else matrix).to(kind).contiguous()
    assert tensor.shape.numpy() == tuple(expected.shape) and tensor.nbytes == expected.nbytes
    assert written(tensor) == tensor.tobytes() == expected.view(torch.uint8).numpy().tobytes()
    assert np.array_equal(tensor.numpy().astype(np.float32), expected.float().numpy())


@pytest.mark.parametrize("rounding", ["symmetric", "asymmetric", "k-quant"])
@pytest.mark.parametrize("transposed", [False, True])
def test_codes_made_in_pieces_are_those_of_the_whole_matrix(small_pieces, transposed, rounding):
    weight = torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    tensor = StreamedTensor(HeldWeight(weight), ir.DataType.FLOAT, "w", transposed=transposed)
    options = Int4Options(rounding=rounding, block_size=16)
    whole = [array for array in quantising.quantiser(options)(tensor.numpy()) if array is not None]
    made = quantising._Codes(tensor, options)
    tensors = made.tensors("w")
    assert len(tensors) == len(whole) == (2 if rounding == "symmetric" else 3)
    for _ in range(2):  # the second time they are made again, as none is kept
        for tensor, expected in zip(tensors, whole, strict=True):
            assert tensor.shape.numpy() == expected.shape and written(tensor) == expected.tobytes()
            assert bool(made.kept) == (tensor is not tensors[-1])
    for tensor, expected in reversed([*zip(tensors, whole, strict=True)]):
        assert tensor.tobytes() == expected.tobytes()


def test_a_matrix_that_others_read_too_is_not_turned_around():
    def graph(readers: int) -> ir.Model:
        weight = ir.val("w", ir.DataType.FLOAT, ir.Shape([3, 2]))
        weight.const_value = StreamedTensor(HeldWeight(torch.ones(3, 2)), ir.DataType.FLOAT, "w")
        turned = ir.node("Transpose", [weight], {"perm": [1, 0]})
        others = [ir.node("Relu", [value]) for value in (turned.outputs[0], *[weight] * (readers - 1))]
        outputs = [node.outputs[0] for node in others]
        made = ir.Graph([], outputs, nodes=[turned, *others], initializers=[weight], opset_imports={"": 20})
        return ir.Model(made, ir_version=10)

    for readers, kinds in ((1, ["Relu"]), (2, ["Transpose", "Relu", "Relu"])):
        model = graph(readers)
        streamed.fold_transposes(model)
        assert [node.op_type for node in model.graph] == kinds
    (value,) = graph(1).graph.initializers.values()
    assert value.const_value.turned("t").shape.numpy() == (2, 3)


@pytest.mark.slow
def test_graphs_written_from_a_folder_are_those_of_the_loaded_model(vlm, tmp_path):
    folders = []
    for name, model in (("folder", VLM.without_weights(vlm.path)), ("loaded", vlm)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        write_base(model, folders[-1], "fp32", wanted=["decoder"])
    for name in (LAYOUT.decoder, LAYOUT.data("decoder")):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_a_model_changed_in_memory_is_exported_as_it_is_in_memory(make_checkpoint, tmp_path):
    vlm = VLM.from_pretrained(make_checkpoint(tmp_path / "model"))
    before = vlm.parts.embed_tokens.weight.detach().clone()
    vlm.parts.embed_tokens.weight.data += 1
    folder = tmp_path / "out"
    folder.mkdir()
    write_base(vlm, folder, "fp32", wanted=["embed_tokens"])
    (value,) = ir.load(folder / LAYOUT.graph("embed_tokens")).graph.initializers.values()
    assert np.array_equal(value.const_value.numpy(), (before + 1).numpy())
