"""Another detector than the right one, a spoiled branch and a changed threshold are caught."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch
from forking import forked_exports

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.errors import InvalidArtifact, ParityFailed, UnsupportedGraph, UsageError
from safetykit.adapters.ops.branch import Branch
from safetykit.export.parity.check import check_parity
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.fork import fork
from safetykit.export.surgery.residual import find_residual_stream


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    return forked_exports(vlm, base_folder, tmp_path)


@pytest.fixture(scope="module")
def bare(base_folder) -> OnnxVLM:
    return OnnxVLM.from_pretrained(base_folder)


def changed(adapter: Adapter, *, safety: int = 0, fused: int = 1, **tensors) -> Adapter:
    values = {name: tensors.get(name, value) for name, value in adapter.branch.tensors.items()}
    branch = Branch("FusedProjection", Site.block(safety), Site.block(fused), values)
    return dataclasses.replace(adapter, branch=branch)


def restated(adapter: Adapter, **changes) -> Adapter:
    return dataclasses.replace(adapter, detector=adapter.detector.model_copy(update=changes))


BAD_ADAPTERS = {
    "another safety layer": lambda a: changed(a, safety=1),
    "another fused layer": lambda a: changed(a, fused=2),
    "the safety layer taken for the fused one": lambda a: changed(a, safety=0, fused=0),
    "the branch runs the last block alone": lambda a: changed(a, safety=1, fused=1),
    "the probe's bias dropped": lambda a: changed(a, bias=torch.tensor(0.0)),
    "the probe's weight one tenth of a percent off": lambda a: changed(a, weight=a.branch.tensors["weight"] * 1.001),
    "the probe's weight in half precision": lambda a: changed(a, weight=a.branch.tensors["weight"].half().float()),
    "the threshold changed": lambda a: restated(a, threshold=a.detector.threshold + 1e-3),
    "the refusal changed": lambda a: restated(a, refusal="describe it ."),
    "the refusal's token changed": lambda a: restated(a, refusal_token=5),
}


def body(model: ir.Model) -> ir.Graph:
    node = next(node for node in model.graph if node.op_type == "If")
    return node.attributes["then_branch"].as_graph()


def start_of(model: ir.Model) -> ir.Node:
    return next(node for node in body(model) if node.name == "safetykit.branch.start")


def projection_turned_round(model: ir.Model) -> None:
    start = start_of(model)
    first, second = start.inputs
    start.replace_input_with(0, second)
    start.replace_input_with(1, first)


def alpha_dropped(model: ir.Model) -> None:
    start = start_of(model)
    start.outputs[0].replace_all_uses_with(start.inputs[1])


def branch_from_the_safety_layer(model: ir.Model) -> None:
    start = start_of(model)
    start.outputs[0].replace_all_uses_with(start.inputs[0])


def a_copied_weight_changed(model: ir.Model) -> None:
    node = next(node for node in body(model) if node.op_type == "MatMul" and node.inputs[1].is_initializer())
    array = node.inputs[1].const_value.numpy() * 1.01
    value = ir.val("other", const_value=ir.tensor(array, name="other"))
    model.graph.register_initializer(value)
    node.replace_input_with(1, value)


def the_first_row_judges_all(model: ir.Model) -> None:
    risk = next(value for value in model.graph.outputs if value.name == "risk_score")
    index = ir.val("first", const_value=ir.tensor(np.array([0]), name="first"))
    model.graph.register_initializer(index)
    first = ir.node("Gather", [risk, index], {"axis": 0})
    shape = ir.node("Shape", [risk])
    wide = ir.node("Expand", [first.outputs[0], shape.outputs[0]])
    model.graph.extend([first, shape, wide])
    risk.name, wide.outputs[0].name = "single", "risk_score"
    wide.outputs[0].dtype, wide.outputs[0].shape = ir.DataType.FLOAT, ir.Shape(["batch"])
    model.graph.outputs[list(model.graph.outputs).index(risk)] = wide.outputs[0]


BAD_GRAPHS = {
    "projection turned round": projection_turned_round,
    "alpha dropped": alpha_dropped,
    "branch from the safety layer": branch_from_the_safety_layer,
    "a copied weight changed": a_copied_weight_changed,
    "the first row judges all": the_first_row_judges_all,
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD_ADAPTERS)
def test_another_detector_than_the_right_one_is_caught(vlm, export, make_detector, what):
    adapter = make_detector()
    with pytest.raises(ParityFailed, match="first risk"):
        check_parity(vlm, export(BAD_ADAPTERS[what](adapter)), [adapter], steps=0).require()


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD_GRAPHS)
def test_a_spoiled_branch_is_caught(vlm, export, make_detector, what):
    adapter = make_detector()
    with pytest.raises(ParityFailed, match="first risk"):
        check_parity(vlm, export(adapter, spoil=BAD_GRAPHS[what]), [adapter], steps=0).require()


def test_an_enforced_threshold_that_was_changed_is_caught(vlm, export, make_detector):
    """The metadata are right; the number that the graph compares with is not."""

    def spoil(model: ir.Model) -> None:
        value = model.graph.initializers["safetykit.risk_threshold"]
        value.const_value = ir.tensor(np.array(50, np.float32), name=value.name)

    adapter = make_detector(threshold=40)  # no request is refused either way
    with pytest.raises(ParityFailed, match="threshold and refusal"):
        check_parity(vlm, export(adapter, enforce=True, spoil=spoil), [adapter], steps=0).require()


def test_an_export_without_its_detector_or_with_one_too_many_is_caught(vlm, export, bare, make_detector):
    adapter = make_detector()
    with pytest.raises(ParityFailed, match="first risk"):
        check_parity(vlm, bare, [adapter], steps=0).require()
    with pytest.raises(ParityFailed, match="threshold and refusal"):
        check_parity(vlm, export(adapter), [], steps=0).require()


def test_a_risk_that_depends_on_nothing_is_refused(export, make_detector):
    with pytest.raises(UsageError, match="same whatever the model is fed"):
        export(changed(make_detector(), weight=torch.zeros(32)))


def test_a_graph_whose_metadata_were_changed_does_not_open(export, make_detector):
    def spoil(model: ir.Model) -> None:
        model.metadata_props["safetykit.risk_threshold"] = "3.5"

    with pytest.raises(InvalidArtifact, match="do not state the same detector"):
        export(make_detector(), spoil=spoil)


def test_one_detector_at_most_and_one_at_least_to_enforce(export, make_detector, make_probe, make_adapter):
    with pytest.raises(UsageError, match="both decide when to refuse"):
        export(make_detector(), make_probe())
    with pytest.raises(UsageError, match="no detector whose refusal"):
        export(make_adapter(("SubspaceProjection", "decoder.layers.0", "all", "both")), enforce=True)


def test_a_layer_that_is_not_there_and_a_second_fork_are_refused(base_folder, make_detector):
    model = ir.load(base_folder / "decoder.onnx")
    stream = find_residual_stream(model)
    with pytest.raises(UsageError, match="decoder has 3 layers"):
        fork(model, stream, make_detector(0, 7).branch)
    fork(model, stream, make_detector().branch)
    with pytest.raises(UnsupportedGraph, match="already has an output `risk_score`"):
        fork(model, stream, make_detector().branch)
