"""int4: our own decoder quantised, adapters in full precision, and parity as strict as for float weights."""

import shutil
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest
import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import ParityFailed, UsageError
from safetykit.export.base.matrices import Matrix, matrix_of
from safetykit.export.foreign.weights import find_weights
from safetykit.export.manifest import LAYOUT, read_manifest
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.report import ParityReport
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import Record

GUARD = ("GatedSteering", "decoder.layers.1", "last", "prefill")
PROJECTION = ("SubspaceProjection", "decoder.layers.2.mlp", "all", "both")
MASKED = ("SubspaceProjection", "decoder.layers.0", "text", "both")  # asks which tokens are pictures


def update(site: str, out: int, columns: int, seed: int = 0) -> WeightUpdate:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"up": torch.randn(out, 2, generator=generator), "down": torch.randn(2, columns, generator=generator)}
    return WeightUpdate(
        f"model.language_model.layers.{site}.weight", {name: 0.3 * one for name, one in tensors.items()}
    )


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


def test_that_no_decision_was_compared_is_said_in_report_and_card(guarded):
    """Rounded weights change answers: an export without records has measured none."""
    _, out = guarded
    (warning,) = ParityReport.read(out / LAYOUT.parity).warnings
    title, _, text = warning.partition(": ")
    assert title == "No decision was compared"
    for name in (LAYOUT.card, LAYOUT.report):
        document = (out / name).read_text()
        assert "no decision was compared" in document.lower() and text[1:] in document


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
