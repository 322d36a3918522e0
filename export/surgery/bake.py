"""Baking: adapters put into a finished graph as constants, by a pass with pre- and postconditions.

The pass adds, and never rewrites, nodes of the base graph; the base's weights file stays as it is.

- Parameter ``p`` of intervention ``k`` becomes the initializer ``safetykit.<k>.<p>``.
- An extra result ``e`` becomes the graph output ``safetykit.<k>.<e>``, an output ``o`` of its own name plainly ``<o>``;
  a per-call tensor ``r`` the graph input ``safetykit.<k>.<r>``.
- A detector leaves the stream alone; its log-odds of harm become the output ``risk_score``. So does an observer.
- The scope mask is one node per distinct scope and phase. ``vision_mask`` [batch, sequence] bool is
  an input of the decoder only when a scope asks for it.
- A gate that is held gets its earlier decision back in one of two ways, see :mod:`.gates`.
- Where parameters are to be swappable, the ops are traced for any rank; see :mod:`.hotswap`.
- With per-call tensors, ``safetykit.enabled`` (float, 1 by default) turns the graph's ops off for
  one run when fed 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...adapters.artifact.intervention import Intervention
from ...adapters.artifact.sites import Site
from ...adapters.errors import UnsupportedGraph, UsageError
from ...adapters.ops.op import Corrector, Detector
from ..base.logits import give_all_logits
from ..manifest import Graph
from ..names import DOMAIN, ENABLED, OP, RISK, SCORE, VISION_MASK, intervention, own
from ..passes import GraphPass
from .building import GraphBuilder
from .functions import OpFunction, mask_function, op_function
from .gates import GateState, HeldGates
from .residual import ResidualStream, find_residual_stream, require_unadapted
from .taps import Tap, decoder_tap, graph_of, vision_tap

_ORDER = {"vision": 0, "projector": 1, "attn": 0, "mlp": 1, "block": 2, "final_norm": 0, "logits": 1}


@dataclass(frozen=True)
class Placed:
    """An intervention with its index among all interventions of an export."""

    index: int
    item: Intervention

    def name(self, part: str) -> str:
        """Name in the graph of one of its tensors."""
        return intervention(self.index, part)


def bake(
    model: ir.Model,
    graph: Graph,
    placed: Sequence[Placed],
    *,
    swappable: bool = False,
    gate_state: GateState = "inputs",
) -> ir.Model:
    """Put interventions into ``model`` in place and return it.

    Args:
        graph: which of the three graphs ``model`` is.
        placed: the interventions whose sites lie in it; at one site the earlier one acts first.
        swappable: leave the ranks of the parameters open, for :mod:`.hotswap`.
        gate_state: how held gates get their decision back.

    Raises:
        UsageError: a site does not exist, or a scope or phase can never apply there.
        UnsupportedGraph: the graph is adapted already or is not understood.
    """
    return BakePass(graph, placed, swappable=swappable, gate_state=gate_state).run(model)


class BakePass(GraphPass):
    """requires: the residual stream is found and every site exists.
    ensures: the checker accepts the graph if it accepted the base, and each intervention is applied
    exactly once. Graphs with operators that only ONNX Runtime knows are left to its own loading check.
    """

    def __init__(
        self, graph: Graph, placed: Sequence[Placed], *, swappable: bool = False, gate_state: GateState = "inputs"
    ) -> None:
        super().__init__()
        self.graph_name, self.placed = graph, tuple(placed)
        self._swappable, self._gate_state = swappable, gate_state
        self._stream: ResidualStream | None = None

    def requires(self, model: ir.Model) -> None:
        require_unadapted(model)
        if not self.placed:
            raise UsageError(f"No intervention lies in the {self.graph_name} graph.", "Give an adapter that does.")
        for one in self.placed:
            if graph_of(one.item.site) != self.graph_name:
                raise UsageError(f"Site {one.item.site} is not in the {self.graph_name} graph.", "Bake it elsewhere.")
            _require_reachable(one.item)
        if self.graph_name == "decoder":
            self._stream = find_residual_stream(model)
            for one in self.placed:
                for site in (*one.item.reads, one.item.site):
                    site.require_within(self._stream.n_layers)
        self.note_checker(model)

    def change(self, model: ir.Model) -> None:
        if any(one.item.site.kind == "logits" for one in self.placed):
            give_all_logits(model)  # a scope's mask is over all positions
        builder = _Builder(model, self._stream, self.placed, swappable=self._swappable, gate_state=self._gate_state)
        groups: dict[Site, list[Placed]] = {site: [] for one in self.placed for site in one.item.reads}
        for one in self.placed:
            groups.setdefault(one.item.site, []).append(one)
        for site in sorted(groups, key=lambda site: (site.layer is None, site.layer or 0, _ORDER[site.kind])):
            tap = builder.tap(site)
            value = tap.value
            for one in groups[site]:
                value = builder.apply(one, value)
            if value is not tap.value:
                tap.replace(value)
            builder.reached[site] = value
        if builder.gates:
            builder.gates.close()

    def ensures(self, model: ir.Model) -> None:
        self.ensure_checker(model, "its adapters")
        applied = Counter(node.name for node in model.graph if node.domain == DOMAIN)
        for one in self.placed:
            if applied[one.name(OP)] != 1:
                raise UnsupportedGraph(
                    f"Intervention {one.index} at {one.item.site} is applied {applied[one.name('op')]} times.",
                    "Report this graph.",
                )


def _require_reachable(item: Intervention) -> None:
    """Refuse an intervention that can never act: an image passes the vision graph once, at prefill."""
    if graph_of(item.site) == "vision_encoder" and (item.phase == "decode" or item.scope not in ("all", "vision")):
        raise UsageError(
            f"Scope {item.scope} in phase {item.phase} never applies at {item.site}.",
            "Image features are computed at prefill: use scope all or vision, phase prefill or both.",
        )
    if graph_of(item.site) == "vision_encoder" and isinstance(item.make_op(), Detector):
        raise UsageError(
            f"{item.op} cannot judge a request at {item.site}.", "Detect at a site of the decoder, which sees it whole."
        )


def add_risk(graph: ir.Graph, risk: ir.Value) -> None:
    """Make ``risk`` [batch] the graph's output ``risk_score``.

    Raises:
        UnsupportedGraph: the graph has one already.
    """
    if any(value.name == RISK for value in graph.outputs):
        raise UnsupportedGraph(f"The graph already has an output `{RISK}`.", "Start from the base graph.")
    risk.name = RISK
    graph.outputs.append(risk)


class _Builder(GraphBuilder):
    """Puts ops into one graph."""

    def __init__(
        self,
        model: ir.Model,
        stream: ResidualStream | None,
        placed: Sequence[Placed],
        *,
        swappable: bool,
        gate_state: GateState,
    ) -> None:
        super().__init__(model)
        self.stream, self.swappable = stream, swappable
        held = [one.index for one in placed if one.item.holds]
        self.gates = HeldGates(self, gate_state, held, stream.n_layers) if stream and held else None
        self.switched = any(one.item.make_op().runtime_inputs for one in placed)
        self.masks: dict[tuple[str, ...], ir.Value] = {}
        self.functions: dict[tuple[object, ...], OpFunction] = {}
        self.last: ir.Value | None = None
        self.reached: dict[Site, ir.Value] = {}  # states as the ops there leave them, in the order of the model

    def tap(self, site: Site) -> Tap:
        if self.stream is None:
            return vision_tap(self.graph, site)
        return decoder_tap(self.graph, self.stream, site)

    def apply(self, one: Placed, hidden: ir.Value) -> ir.Value:
        """Call the op of ``one`` on ``hidden``; returns the new hidden state."""
        op, held = one.item.make_op(), one.item.holds
        assert hidden.shape is not None
        arguments = {"hidden": hidden}
        if isinstance(op, Detector):
            arguments["past_length"] = self.past_length()
        else:
            arguments["scope"] = self.mask(one.item, hidden)
        if self.gates and held:
            arguments |= {"decides": self.gates.decides(), "held": self.gates.held(one.index)}
        if one.item.reads:
            arguments["earlier"] = self.earlier(one)
        for name in op.runtime_inputs:
            arguments[name] = self.input(one.name(name), ir.DataType.FLOAT, ["batch", hidden.shape[2]])
        for name in op.params:
            arguments[name] = self.constant(one.name(name), one.item.tensors[name].numpy(force=True))
        shapes = (tuple(one.item.tensors[name].shape) for name in op.params)
        key = (op.name, one.item.gate, len(one.item.reads), hidden.dtype, hidden.shape[2], *shapes)
        if key not in self.functions:
            made = op_function(one.item, hidden, self.opset, swappable=self.swappable)
            self.functions[key] = self.register(made)
        results = list(self.call(self.functions[key], arguments, one.name(OP)))
        if isinstance(op, Detector):
            add_risk(self.graph, results[0])
            return hidden
        changed = results.pop(0) if isinstance(op, Corrector) else None
        if self.gates and held:
            self.gates.decided(one.index, results[op.extras.index(SCORE)])
        names = [*(one.name(name) for name in op.extras), *op.outputs]
        for name, value in zip(names, results, strict=True):
            value.name = name
            if any(output.name == name for output in self.graph.outputs):
                raise UsageError(f"Two ops give an output {name!r}.", f"Export with one {op.name} or the like.")
            if value.shape is not None:
                value.shape = ir.Shape([hidden.shape[0], *value.shape[1:]])  # the function calls its rows a batch
            self.graph.outputs.append(value)
        if changed is None:
            return hidden
        changed.name, changed.shape = one.name("hidden"), hidden.shape
        return changed

    def earlier(self, one: Placed) -> ir.Value:
        """The last positions of the sites that an op reads beside its own, [batch, k·d] float32."""
        if self.last is None:
            self.last = self.constant(own("last"), np.array(-1, np.int64))
        parts: list[ir.Value] = []
        for site in one.item.reads:
            hidden = self.reached[site]
            assert hidden.shape is not None
            shape = ir.Shape([hidden.shape[0], hidden.shape[2]])
            last = self.node("Gather", [hidden, self.last], hidden.dtype, shape, {"axis": 1})
            parts.append(self.node("Cast", [last], ir.DataType.FLOAT, shape, {"to": int(ir.DataType.FLOAT)}))
        return self.node("Concat", parts, ir.DataType.FLOAT, None, {"axis": 1})

    def mask(self, item: Intervention, hidden: ir.Value) -> ir.Value:
        """The scope mask [batch, sequence, 1] of an intervention, shared by all with its scope and phase whose sites
        have the same tokens: a projector may merge those that it reads."""
        scope, phase = item.scope, item.phase
        if self.stream is None:  # every token is an image token, and the graph runs at prefill only
            scope, phase = "all", "both"
        else:
            hidden = self.stream.base
        key = (scope, phase, item.site.kind) if graph_of(item.site) == "vision_encoder" else (scope, phase)
        if key not in self.masks:
            function = self.register(mask_function(scope, phase, hidden, self.opset))
            arguments = {"hidden": hidden}
            if "past_length" in function.uses:
                arguments["past_length"] = self.past_length()
            if "vision_mask" in function.uses:
                arguments["vision_mask"] = self.input(VISION_MASK, ir.DataType.BOOL, ["batch", "sequence"])
            (value,) = self.call(function, arguments, own(".".join(("mask", *key))))
            self.masks[key] = self.switch(value) if self.switched else value
        return self.masks[key]

    def switch(self, mask: ir.Value) -> ir.Value:
        """``mask`` times the overridable ``safetykit.enabled``."""
        enabled = next((value for value in self.graph.inputs if value.name == ENABLED), None)
        if enabled is None:
            enabled = self.constant(ENABLED, np.array(1, np.float32))
            self.graph.inputs.append(enabled)
        return self.node("Mul", [mask, enabled], ir.DataType.FLOAT, mask.shape)
