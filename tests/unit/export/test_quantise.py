"""int4: our own decoder quantised, adapters in full precision, and parity as strict as for float weights."""

import shutil
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import ParityFailed, UsageError
from safetykit.export.base.int4 import Int4Options
from safetykit.export.base.matrices import Matrix, matrix_of
from safetykit.export.base.own import quantise_decoder
from safetykit.export.base.quantise import quantise, quantiser
from safetykit.export.foreign.weights import find_weights
from safetykit.export.manifest import LAYOUT, read_manifest
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.report import ParityReport
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import copy_base
from safetykit.toolkit.data.records import Record

GUARD = ("GatedSteering", "decoder.layers.1", "last", "prefill")
PROJECTION = ("SubspaceProjection", "decoder.layers.2.mlp", "all", "both")
ROUNDINGS = [
    Int4Options(rounding=rounding, block_size=size)
    for rounding in ("symmetric", "asymmetric", "k-quant")
    for size in (16, 32)
]
MASKED = ("SubspaceProjection", "decoder.layers.0", "text", "both")  # asks which tokens are pictures


def update(site: str, out: int, columns: int, seed: int = 0) -> WeightUpdate:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"up": torch.randn(out, 2, generator=generator), "down": torch.randn(2, columns, generator=generator)}
    return WeightUpdate(
        f"model.language_model.layers.{site}.weight", {name: 0.3 * one for name, one in tensors.items()}
    )


@pytest.mark.slow
def test_quantising_does_not_switch_on_the_log_of_other_libraries():
    said = (
        "import logging; from safetykit.export.base.quantise import quantiser; quantiser(); "
        "logging.getLogger('elsewhere').info('noise'); print(logging.getLogger().handlers)"
    )
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and "noise" not in done.stderr


def test_every_weight_becomes_codes_and_nothing_else_changes(vlm, base_folder, int4_folder):
    assert read_manifest(int4_folder).precision == "int4"
    kinds = [node.op_type for node in ir.load(int4_folder / LAYOUT.decoder).graph]
    assert kinds.count("MatMulNBits") == 7 * 3 + 1
    for name in ("vision_encoder", "embed_tokens"):
        assert (int4_folder / LAYOUT.graph(name)).read_bytes() == (base_folder / LAYOUT.graph(name)).read_bytes()
    small, large = ((folder / LAYOUT.data("decoder")).stat().st_size for folder in (int4_folder, base_folder))
    assert small < 0.4 * large


@pytest.mark.parametrize("inputs", [64, 72])  # 72: three blocks of zero points to a byte and a half, and a part of one
@pytest.mark.parametrize("options", [*ROUNDINGS, Int4Options(rounding="asymmetric", head_8bit=True)], ids=str)
def test_a_product_is_that_of_the_weights_that_are_read_back(options, inputs):
    """ONNX Runtime multiplies with the very weights that parity and fits on a graph read out of it."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(inputs, 10)).astype(np.float32)
    weight[:32, 3], weight[:32, 4] = np.abs(weight[:32, 3]) + 0.5, -np.abs(weight[:32, 4]) - 0.5  # of one sign
    x, matrix = (
        ir.val(name, ir.DataType.FLOAT, ir.Shape(shape)) for name, shape in (("x", [2, inputs]), ("w", [inputs, 10]))
    )
    matrix.const_value = ir.tensor(weight, name="w")
    product = ir.node("MatMul", [x, matrix])
    output = product.outputs[0]
    output.name, output.type, output.shape = "logits", ir.TensorType(ir.DataType.FLOAT), ir.Shape([2, 10])
    graph = ir.Graph([x], [output], nodes=[product], initializers=[matrix], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    quantise(model, options)
    (node,) = model.graph
    node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 1)  # activations as they are
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    given = random.normal(size=(2, inputs)).astype(np.float32)
    read = matrix_of(node).rows()
    assert np.allclose(session.run(None, {"x": given})[0], given @ read.values.T, atol=1e-4)
    bits = 8 if options.head_8bit else 4
    assert matrix_of(node).bits == bits
    # No weight is further off than the range of its block, with 0, leaves room for.
    assert (np.abs(read.values - weight.T) <= 1.01 * np.abs(weight).max() / 2 ** (bits - 1)).all()


def test_finer_and_less_symmetric_codes_are_nearer(vlm):
    weight = vlm.parts.layers[0].mlp.down_proj.weight.detach().numpy().T

    def error(**chosen) -> float:
        codes = quantiser(Int4Options(**chosen))(weight)
        size, shape = chosen["block_size"], codes.scales.shape
        values = np.stack([codes.packed & 15, codes.packed >> 4], -1).reshape(*shape, size).astype(np.float32)
        zeros = 8.0 if codes.zeros is None else np.stack([codes.zeros & 15, codes.zeros >> 4], -1).reshape(shape[0], -1)
        zeros = zeros if codes.zeros is None else zeros[:, : shape[1], None].astype(np.float32)
        read = ((values - zeros) * codes.scales[..., None]).reshape(shape[0], -1)
        return float(((read - weight.T) ** 2).sum())

    assert error(rounding="symmetric", block_size=16) < error(rounding="symmetric", block_size=64)
    assert error(rounding="asymmetric", block_size=32) < error(rounding="symmetric", block_size=32)
    assert error(rounding="k-quant", block_size=32) < error(rounding="symmetric", block_size=32)


def test_a_head_in_8_bits_is_the_only_one(vlm, base_folder, tmp_path):
    manifest = read_manifest(base_folder)
    copy_base(base_folder, tmp_path, manifest)
    made = quantise_decoder(tmp_path, manifest, Int4Options(head_8bit=True, block_size=16))
    assert made.int4.head_8bit and made.int4.block_size == 16
    graph = ir.load(tmp_path / LAYOUT.decoder).graph
    bits = {node.outputs[0].name == "logits": set() for node in graph}
    for node in graph:
        if node.op_type == "MatMulNBits":
            bits[node.outputs[0].name == "logits"].add(node.attributes["bits"].as_int())
    assert bits == {False: {4}, True: {8}}


@pytest.mark.parametrize("size", [0, 24, 512])
def test_blocks_that_no_kernel_computes_are_refused(size):
    with pytest.raises(UsageError, match="not computed.*16, 32, 64, 128 or 256"):
        Int4Options(block_size=size)


def test_codes_read_back_are_within_half_a_step(vlm, int4_folder):
    graph = ir.load(int4_folder / LAYOUT.decoder).graph
    head = next(node for node in graph if node.op_type == "MatMulNBits" and node.outputs[0].name == "logits")
    read, ours = matrix_of(head).rows(), vlm.parts.head.weight.detach().numpy()
    assert (np.abs(read.values - ours) <= 0.5001 * read.step)[~read.clipped].all()
    assert (np.abs(read.values - ours) <= 1.0001 * read.step).all() and read.clipped.mean() < 0.2


def test_a_graph_is_not_searched_anew_for_every_weight(vlm, int4_folder, monkeypatch):
    """Reading every matrix for every layer grows with the square of the layers: minutes for thirty of them."""
    read, rows = [], Matrix.rows

    def counted(self, wanted=slice(None)):
        read.append(self.name)
        return rows(self, wanted)

    monkeypatch.setattr(Matrix, "rows", counted)
    weights = find_weights(vlm, ir.load(int4_folder / LAYOUT.decoder))
    assert len(weights.found) == 7 * 3 + 1 and not weights.unread
    assert len({(item.matrix.name, item.first) for item in weights.found}) == len(weights.found)
    assert len(read) <= 3 * len(weights.found)


@pytest.mark.slow
def test_the_adapter_is_as_exact_as_in_float_weights(vlm, int4_folder, make_adapter, make_detector, tmp_path):
    """Corrector, detector with its branch, and low-rank weight updates, stacked, with decisions."""
    projector = "model.multi_modal_projector.linear_2.weight"
    shape = vlm.model.get_parameter(projector).shape
    weights = (
        update("0.mlp.down_proj", 32, 64),
        update("1.self_attn.v_proj", 16, 32, seed=1),
        WeightUpdate(projector, {"value": 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(2))}),
    )
    updating = Adapter(make_adapter().info, updates=weights)
    adapters = [updating, make_adapter(GUARD, PROJECTION, MASKED), make_detector()]
    records = [
        Record(id=str(at), prompt=prompt, label="harmful", split="test", response="so")
        for at, prompt in enumerate(("what is this thing ?", "describe it ."))
    ]
    result = export_onnx(
        vlm,
        adapters,
        tmp_path / "out",
        precision="int4",
        base_onnx=int4_folder,
        records=records,
        max_new_tokens=4,
        allow_uncorrected_detector=True,
    )
    report = result.parity
    assert report.warnings == ()
    assert report.passed and {"logits", "risk", "op", "drift", "decisions"} <= {check.kind for check in report.checks}
    assert report.worst("drift") > 100 * report.worst("logits")
    (bypass,) = [check for check in report.checks if "bypassed" in check.case]
    assert bypass.error == 0
    data = LAYOUT.data("decoder")
    assert (tmp_path / "out" / data).read_bytes() == (int4_folder / data).read_bytes(), "codes stay as they are"
    decoder = ir.load(tmp_path / "out" / LAYOUT.decoder)
    inside = [node for function in decoder.functions.values() for node in function]
    assert not any("NBits" in node.op_type or "Quantize" in node.op_type for node in inside)
    assert sum(node.op_type == "MatMulNBits" for node in decoder.graph) == 7 * 3 + 1


@pytest.fixture(scope="module")
def guarded(vlm, int4_folder, make_adapter, tmp_path_factory):
    adapter = make_adapter(GUARD, PROJECTION)
    out = tmp_path_factory.mktemp("guarded") / "out"
    export_onnx(vlm, [adapter], out, precision="int4", base_onnx=int4_folder)
    return adapter, out


@pytest.mark.slow
def test_that_no_decision_was_compared_is_said_in_report_and_card(guarded):
    """Rounded weights change answers: an export without records has measured none."""
    _, out = guarded
    (warning,) = ParityReport.read(out / LAYOUT.parity).warnings
    title, _, text = warning.partition(": ")
    assert title == "No decision was compared"
    for name in (LAYOUT.card, LAYOUT.report):
        document = (out / name).read_text()
        assert "no decision was compared" in document.lower() and text[1:] in document


@pytest.mark.slow
@pytest.mark.parametrize("what", ["sign", "layer", "dropped"])
def test_a_bad_export_is_caught_although_the_weights_are_rounded(vlm, guarded, make_adapter, tmp_path, what):
    adapter, out = guarded
    folder = tmp_path / "bad"
    shutil.copytree(out, folder)
    model = ir.load(folder / LAYOUT.decoder)
    steering = next(node for node in model.graph if node.name == "safetykit.0.op")
    if what == "sign":
        value = model.graph.initializers["safetykit.0.alpha"]
        value.const_value = ir.tensor(-value.const_value.numpy(), name=value.name)
        ir.save(model, folder / LAYOUT.decoder)
    elif what == "dropped":
        for reader, index in list(steering.outputs[0].uses()):
            reader.replace_input_with(index, steering.inputs[0])
        ir.save(model, folder / LAYOUT.decoder)
    else:
        adapter = make_adapter((GUARD[0], "decoder.layers.0", *GUARD[2:]), PROJECTION)
    onnx_vlm = OnnxVLM(folder, read_manifest(folder, verify=False), vlm.inputs, ["CPUExecutionProvider"])
    report = check_parity(vlm, onnx_vlm, [adapter], steps=2)
    assert not report.passed
    with pytest.raises(ParityFailed):
        report.require()


def test_folding_into_codes_is_refused(vlm, int4_folder, make_adapter, tmp_path):
    with pytest.raises(UsageError, match="would round the adapter away.*--mode bake"):
        export_onnx(
            vlm, [make_adapter(PROJECTION)], tmp_path / "out", precision="int4", mode="fold", base_onnx=int4_folder
        )


def test_a_new_value_for_a_quantised_weight_is_refused(vlm, int4_folder, make_adapter, tmp_path):
    value = WeightUpdate("model.language_model.layers.0.mlp.down_proj.weight", {"value": torch.ones(32, 64)})
    adapter = Adapter(make_adapter().info, updates=(value,))
    with pytest.raises(Exception, match="weights are quantised.*only low-rank updates"):
        export_onnx(vlm, [adapter], tmp_path / "out", precision="int4", base_onnx=int4_folder)


def test_int8_is_not_made_here(vlm, make_adapter, tmp_path):
    with pytest.raises(UsageError, match="does not quantise to int8.*int4"):
        export_onnx(vlm, [make_adapter(GUARD)], tmp_path / "out", precision="int8")
