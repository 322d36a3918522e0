"""What a graph says about its detector: when to refuse and with which words, and whether it does so itself.

Threshold, refusal and its first token stand in the decoder's ``metadata_props``, for runtimes that know the graph
alone. With ``enforce`` the graph also replaces the last logits of a refused row's prompt, by
:class:`~safetykit.adapters.ops.forcing.ForcedRefusal`, so that a runtime that looks for the best token refuses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import safetensors.torch

from ...adapters.artifact.manifest import DetectorInfo, DetectorState
from ...adapters.errors import UnsupportedGraph
from ...adapters.ops.op import Detector
from ..metadata import read_metadata, read_state, write_metadata, write_state
from ..names import ENFORCE, LOGITS, RISK, THRESHOLD, TOKEN, own
from ..passes import GraphPass, broken
from .building import GraphBuilder
from .functions import forcing_function
from .residual import head_output

if TYPE_CHECKING:
    import torch

    from ...adapters.artifact.adapter import Adapter
    from ...adapters.artifact.sites import Site


@dataclass(frozen=True)
class StatedDetector:
    """What a graph states.

    Attributes:
        info: from its metadata.
        enforced: threshold and token that its logits are forced by; None when they are not.
    """

    info: DetectorInfo
    enforced: tuple[float, int] | None


def detector_state(adapters: Sequence[Adapter]) -> DetectorState | None:
    """What the risk of the stacked adapters comes from, as it goes into the graph; None without a detector."""
    for adapter in adapters:
        if adapter.detector is None:
            continue
        if branch := adapter.branch:
            return _state((branch.safety, branch.fused), branch.tensors)
        item = next(item for item in adapter.interventions if isinstance(item.make_op(), Detector))
        return _state((*item.reads, item.site), item.tensors)
    return None


def _state(sites: Sequence[Site], tensors: Mapping[str, torch.Tensor]) -> DetectorState:
    data = safetensors.torch.save({name: one.detach().cpu().contiguous() for name, one in sorted(tensors.items())})
    return DetectorState(sites=tuple(map(str, sites)), tensors=hashlib.sha256(data).hexdigest())


def install_detector(
    model: ir.Model, detector: DetectorInfo, state: DetectorState | None = None, *, enforce: bool
) -> None:
    """State ``detector`` in a decoder that gives a ``risk_score``, and with ``enforce`` force its logits.

    Args:
        state: what the risk comes from, which is stated, too.

    Raises:
        UnsupportedGraph: the graph gives no risk or no logits.
    """
    DetectorPass(detector, state, enforce=enforce).run(model)


class DetectorPass(GraphPass):
    """requires: the graph gives a risk and logits.
    ensures: the graph states this detector, forces by its very threshold and token or not at all, and still gives both.
    """

    def __init__(self, detector: DetectorInfo, state: DetectorState | None = None, *, enforce: bool) -> None:
        super().__init__()
        self.detector, self.state, self.enforce = detector, state, enforce

    def requires(self, model: ir.Model) -> None:
        if not {RISK, LOGITS} <= {value.name for value in model.graph.outputs}:
            raise UnsupportedGraph(f"The graph has no outputs `{RISK}` and `{LOGITS}`.", "Bake the detector first.")
        if self.enforce:
            self.note_checker(model)

    def change(self, model: ir.Model) -> None:
        model.metadata_props.update(write_metadata(self.detector))
        model.metadata_props.update(write_state(self.state) if self.state else {})
        if self.enforce:
            _force(model, self.detector)

    def ensures(self, model: ir.Model) -> None:
        self.ensure_checker(model, "its detector")
        wanted = (float(np.float32(self.detector.threshold)), self.detector.refusal_token) if self.enforce else None
        if stated_detector(model) != StatedDetector(self.detector, wanted) or self.state != read_state(
            model.metadata_props
        ):
            raise broken("The graph does not state the detector that it was given")
        if not {RISK, LOGITS} <= {value.name for value in model.graph.outputs}:
            raise broken(f"The graph gives no `{RISK}` and `{LOGITS}` any more")


def _force(model: ir.Model, detector: DetectorInfo) -> None:
    """Have the graph force the logits of refused rows."""
    outputs = {value.name: value for value in model.graph.outputs}
    builder, logits = GraphBuilder(model), head_output(outputs[LOGITS])
    readers = tuple(logits.uses())  # listed now: the forcing itself reads the value too
    function = builder.register(forcing_function(logits, builder.opset))
    arguments = {
        "logits": logits,
        "risk": outputs[RISK],
        "threshold": builder.constant(THRESHOLD, np.array(detector.threshold, np.float32)),
        "token": builder.constant(TOKEN, np.array(detector.refusal_token, np.int64)),
    }
    (forced,) = builder.call(function, arguments, ENFORCE)
    forced.shape = logits.shape
    for node, index in readers:
        node.replace_input_with(index, forced)
    if logits is outputs[LOGITS]:
        logits.name, forced.name = own("logits"), LOGITS
        model.graph.outputs[list(model.graph.outputs).index(logits)] = forced


def stated_detector(model: ir.Model) -> StatedDetector | None:
    """What :func:`install_detector` put into ``model``; None without a detector."""
    info = read_metadata(model.metadata_props)
    if info is None:
        return None
    node = next((node for node in model.graph if node.name == ENFORCE), None)
    if node is None:
        return StatedDetector(info, None)
    found = [_held(value) for value in node.inputs[2:] if value is not None]
    values = [value.const_value.numpy().item() for value in found if value.const_value is not None]
    return StatedDetector(info, (float(values[0]), int(values[1])) if len(values) == 2 else (np.nan, -1))


def _held(value: ir.Value) -> ir.Value:
    """The initializer that a scalar is read from: swappable ones are vectors of one number."""
    node = value.producer()
    return node.inputs[0] or value if node is not None and node.op_type == "Squeeze" else value
