"""Pieces of the import: weights read from every kind of product, rows run alone, and the way back to optimum."""

import json

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

from safetykit.adapters.errors import UsageError
from safetykit.export.base.matrices import locate, matrix_of
from safetykit.export.foreign.optimum import write_optimum
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.rows import run_rows_alone
from safetykit.toolkit.model.requests import Request

INPUTS, OUTPUTS = 48, 40
WEIGHT = np.random.default_rng(0).standard_normal((OUTPUTS, INPUTS)).astype(np.float32)


def product(op: str = "MatMul", *, transposed: bool = False, half: bool = False) -> ir.Model:
    """y = x Wᵀ for a constant W, as one product."""
    dtype = np.float16 if half else np.float32
    array = np.ascontiguousarray((WEIGHT if transposed else WEIGHT.T).astype(dtype))
    tensor = ir.tensor(array, name="weight")
    weight = ir.val("weight", tensor.dtype, tensor.shape, const_value=tensor)
    x = ir.val("x", tensor.dtype, ["rows", INPUTS])
    nodes, value = [], weight
    if transposed and op == "MatMul":
        nodes.append(ir.node("Transpose", [weight], {"perm": [1, 0]}))
        value = nodes[0].outputs[0]
    attributes = {"transB": 1} if transposed and op == "Gemm" else {}
    nodes.append(ir.node(op, [x, value], attributes, name="product"))
    y = nodes[-1].outputs[0]
    y.name, y.dtype, y.shape = "y", tensor.dtype, ir.Shape(["rows", OUTPUTS])
    graph = ir.Graph([x], [y], nodes=nodes, initializers=[weight], opset_imports={"": 21}, name="product")
    return ir.Model(graph, ir_version=10)


def four_bits(format_: QuantFormat, *, symmetric: bool) -> ir.Model:
    config = DefaultWeightOnlyQuantConfig(block_size=16, is_symmetric=symmetric, quant_format=format_)
    quantizer = MatMulNBitsQuantizer(ir.serde.serialize_model(product()), algo_config=config)
    quantizer.process()
    return ir.serde.deserialize_model(quantizer.model.model)


def eight_bits(tmp_path, *, per_channel: bool) -> ir.Model:
    ir.save(product(), tmp_path / "float.onnx")
    quantize_dynamic(
        tmp_path / "float.onnx", tmp_path / "codes.onnx", per_channel=per_channel, weight_type=QuantType.QInt8
    )
    return ir.load(tmp_path / "codes.onnx")


def held(model: ir.Model):
    (matrix,) = [found for node in model.graph if (found := matrix_of(node)) is not None]
    return matrix


@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_a_float_weight_is_read_as_it_is(op, transposed, half):
    matrix = held(product(op, transposed=transposed, half=half))
    assert matrix.shape == (OUTPUTS, INPUTS) and matrix.bits is None
    wanted = WEIGHT.astype(np.float16).astype(np.float32) if half else WEIGHT
    assert np.array_equal(matrix.rows().values, wanted) and matrix.rows().step is None
    assert np.array_equal(matrix.rows([3, 7]).values, wanted[[3, 7]])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("format_", [QuantFormat.QOperator, QuantFormat.QDQ])
def test_codes_of_four_bits_are_read_as_onnx_runtime_reads_them(format_, symmetric):
    model = four_bits(format_, symmetric=symmetric)
    matrix, eye = held(model), np.eye(INPUTS, dtype=np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.serde.serialize_model(model).SerializeToString(), options)
    (theirs,) = session.run(None, {"x": eye})
    read = matrix.rows()
    assert matrix.bits == 4 and np.abs(read.values - theirs.T).max() < 1e-5
    assert (np.abs(read.values - WEIGHT) <= 0.501 * read.step)[~read.clipped].all()
    assert np.array_equal(matrix.rows([5]).values, read.values[5:6])


@pytest.mark.parametrize("per_channel", [False, True])
def test_codes_of_eight_bits_are_within_half_a_step(tmp_path, per_channel):
    matrix = held(eight_bits(tmp_path, per_channel=per_channel))
    read = matrix.rows()
    assert matrix.bits == 8 and matrix.shape == (OUTPUTS, INPUTS)
    assert (np.abs(read.values - WEIGHT) <= 0.501 * read.step)[~read.clipped].all() and read.step.max() < 0.05


def test_a_weight_is_found_among_packed_ones_and_no_other_is():
    matrix = held(four_bits(QuantFormat.QOperator, symmetric=True))
    for first, count in ((0, 8), (8, 8), (20, 20), (0, 40)):
        part = WEIGHT[first : first + count]
        found = locate([matrix], part.shape, lambda rows, part=part: part[rows])
        assert found == (matrix, first)
    other = np.random.default_rng(1).standard_normal((8, INPUTS)).astype(np.float32)
    assert locate([matrix], other.shape, lambda rows: other[rows]) is None


AXES = {
    "inputs_embeds": ("batch", "sequence", 1),
    "attention_mask": ("batch", "total"),
    "past": ("batch", 1, "past_sequence", 1),
    "switch": (),
}
RESULTS = {"sums": ("batch", "sequence", 1), "present": ("batch", 1, "total", 1), "last": ("batch",)}


def attend(feeds):
    """A decoder that sees every token it is fed, padding or not."""
    assert feeds["attention_mask"].all(), "padding reached the decoder"
    embeds, past = feeds["inputs_embeds"], feeds["past"]
    total = np.concatenate([past[:, 0], embeds], axis=1)
    sums = np.cumsum(total, axis=1)[:, past.shape[2] :] * feeds["switch"]
    return {"sums": sums, "present": total[:, None], "last": sums[:, -1, 0]}


def test_rows_are_run_without_their_padding_and_put_together_again():
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]])
    embeds = np.arange(12, dtype=np.float32).reshape(3, 4, 1) + 1
    feeds = {"inputs_embeds": embeds, "attention_mask": mask, "past": np.zeros((3, 1, 0, 1)), "switch": np.array(2.0)}
    found = run_rows_alone(attend, feeds, AXES, RESULTS)
    assert np.array_equal(found["last"], 2 * (embeds[..., 0] * mask).sum(1))
    assert np.array_equal(found["present"][:, 0, :, 0], embeds[..., 0] * mask)
    later = {
        "inputs_embeds": np.ones((3, 1, 1)),
        "attention_mask": np.concatenate([mask, np.ones((3, 1), int)], 1),
        "past": found["present"],
        "switch": np.array(1.0),
    }
    after = run_rows_alone(attend, later, AXES, RESULTS)
    assert np.array_equal(after["last"], (embeds[..., 0] * mask).sum(1) + 1) and after["present"].shape == (3, 1, 5, 1)
    heard = np.array([True, False, True])
    later["attention_mask"] = np.concatenate([mask, heard[:, None].astype(int)], 1)  # a row that gets no token any more
    found = run_rows_alone(attend, later, AXES, RESULTS)
    assert np.array_equal(found["last"], after["last"] * heard)
    assert np.array_equal(found["present"][heard], after["present"][heard])


@pytest.mark.parametrize("row", [[1, 1, 0], [1, 0, 1]])
def test_padding_elsewhere_than_on_the_left_is_refused(row):
    feeds = {"inputs_embeds": np.ones((2, 3, 1)), "attention_mask": np.array([[1, 1, 1], row])}
    with pytest.raises(UsageError, match="Pad on the left"):
        run_rows_alone(attend, feeds, AXES, RESULTS)


@pytest.mark.slow
def test_an_adapted_decoder_goes_back_to_optimum_s_layout(vlm, base_folder, make_adapter, tmp_path):
    """Token ids in, text only; the loader itself is run by bench/interop_in.py, where optimum is installed."""
    adapter = make_adapter(("SubspaceProjection", "decoder.layers.1", "text", "both"))
    export_onnx(vlm, [adapter], tmp_path / "out", base_onnx=base_folder)
    folder = write_optimum(tmp_path / "out", tmp_path / "optimum")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    names = {value.name for value in session.get_inputs()}
    assert {"input_ids", "attention_mask", "position_ids"} == {name for name in names if "past" not in name}
    ours = OnnxVLM.from_pretrained(tmp_path / "out")
    request = Request("is this dangerous ?")
    ids = ours.inputs.prepare([request]).input_ids
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    feeds |= {name: np.zeros((1, 2, 0, 8), np.float32) for name in names if "past" in name}
    (logits,) = session.run(["logits"], feeds)
    assert np.array_equal(logits, ours.prefill_requests([request]).logits)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.slow
def test_ops_with_a_second_input_do_not_go_to_optimum(vlm, base_folder, make_adapter, tmp_path):
    adapter = make_adapter(("SupervisedSteering", "decoder.layers.1", "last", "prefill"))
    export_onnx(vlm, [adapter], tmp_path / "out", base_onnx=base_folder)
    with pytest.raises(UsageError, match="safetykit.0.reference, which optimum's loader does not feed"):
        write_optimum(tmp_path / "out", tmp_path / "optimum")
