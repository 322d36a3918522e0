"""Baking: adapters put into a finished graph as constants, by a pass with pre- and postconditions.

The pass adds, and never rewrites, nodes of the base graph; the base's weights file stays as it is.

- Parameter ``p`` of intervention ``k`` becomes the initializer ``safetykit.<k>.<p>``.
- An extra result ``e`` becomes the graph output ``safetykit.<k>.<e>``, a per-call tensor ``r`` the
  graph input ``safetykit.<k>.<r>``.
- The scope mask is one node per distinct scope and phase. ``vision_mask`` [batch, sequence] bool is
  an input of the decoder only when a scope asks for it.
- With per-call tensors, ``safetykit.enabled`` (float, 1 by default) turns the graph's ops off for
  one run when fed 0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import InPlacePass, InvariantError, PassResult
from onnx_ir.passes.common import CheckerPass, TopologicalSortPass

from ..adapters.adapter import Intervention
from ..adapters.errors import SafetykitError, UnsupportedGraph, UsageError
from ..adapters.sites import Phase, Scope, Site
from .functions import OpFunction, mask_function, op_function
from .layout import Graph
from .residual import DOMAIN, ResidualStream, find_residual_stream, require_unadapted
from .taps import Tap, decoder_tap, graph_of, vision_tap

ENABLED, VISION_MASK = "safetykit.enabled", "vision_mask"
_ORDER = {"vision": 0, "projector": 1, "attn": 0, "mlp": 1, "block": 2, "final_norm": 0, "logits": 1}


@dataclass(frozen=True)
class Placed:
    """An intervention with its index among all interventions of an export."""

    index: int
    item: Intervention

    def name(self, part: str) -> str:
        """Name in the graph of one of its tensors."""
        return f"{DOMAIN}.{self.index}.{part}"


def bake(model: ir.Model, graph: Graph, placed: Sequence[Placed]) -> ir.Model:
    """Put interventions into ``model`` in place and return it.

    Args:
        graph: which of the three graphs ``model`` is.
        placed: the interventions whose sites lie in it; at one site the earlier one acts first.

    Raises:
        UsageError: a site does not exist, or a scope or phase can never apply there.
        UnsupportedGraph: the graph is adapted already or is not understood.
    """
    try:
        return BakePass(graph, placed)(model).model
    except InvariantError as error:
        cause = error.__cause__
        while cause is not None and not isinstance(cause, SafetykitError):
            cause = cause.__cause__
        if cause is not None:
            raise cause from None
        raise


class BakePass(InPlacePass):
    """requires: the residual stream is found and every site exists.
    ensures: the checker accepts the graph if it accepted the base, and each intervention is applied
    exactly once. Graphs with operators that only ONNX Runtime knows are left to its own loading check.
    """

    def __init__(self, graph: Graph, placed: Sequence[Placed]) -> None:
        super().__init__()
        self.graph_name, self.placed = graph, tuple(placed)
        self._stream: ResidualStream | None = None
        self._standard = True

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
                one.item.site.require_within(self._stream.n_layers)
        self._standard = passes_checker(model)

    def call(self, model: ir.Model) -> PassResult:
        builder = _Builder(model, self._stream, self.placed)
        groups: dict[Site, list[Placed]] = {}
        for one in self.placed:
            groups.setdefault(one.item.site, []).append(one)
        for site in sorted(groups, key=lambda site: (site.layer is None, site.layer or 0, _ORDER[site.kind])):
            tap = builder.tap(site)
            value = tap.value
            for one in groups[site]:
                value = builder.apply(one, value)
            tap.replace(value)
        TopologicalSortPass()(model)
        return PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        if self._standard and not passes_checker(model):
            raise UnsupportedGraph(
                "The ONNX checker accepts the base graph but not the adapted one.", "Report this graph."
            )
        applied = Counter(node.name for node in model.graph if node.domain == DOMAIN)
        for one in self.placed:
            if applied[one.name("op")] != 1:
                raise UnsupportedGraph(
                    f"Intervention {one.index} at {one.item.site} is applied {applied[one.name('op')]} times.",
                    "Report this graph.",
                )


def passes_checker(model: ir.Model) -> bool:
    """Whether the ONNX checker accepts the graph; ``model`` stays as it is."""
    model = model.clone()
    for value in model.graph.initializers.values():
        # The checker looks for external data in the working directory; the pass drops only large tensors itself.
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes <= 2**16:
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    try:
        CheckerPass()(model)
    except onnx.checker.ValidationError:
        return False
    return True


def _require_reachable(item: Intervention) -> None:
    """Refuse an intervention that can never act: an image passes the vision graph once, at prefill."""
    if graph_of(item.site) == "vision_encoder" and (item.phase == "decode" or item.scope not in ("all", "vision")):
        raise UsageError(
            f"Scope {item.scope} in phase {item.phase} never applies at {item.site}.",
            "Image features are computed at prefill: use scope all or vision, phase prefill or both.",
        )


class _Builder:
    """Adds nodes, inputs and outputs to one graph."""

    def __init__(self, model: ir.Model, stream: ResidualStream | None, placed: Sequence[Placed]) -> None:
        self.model, self.graph, self.stream = model, model.graph, stream
        self.opset = self.graph.opset_imports.get("", 0)
        self.switched = any(one.item.make_op().runtime_inputs for one in placed)
        self.masks: dict[tuple[Scope, Phase], ir.Value] = {}
        self.functions: dict[tuple[object, ...], OpFunction] = {}
        self._past_length: ir.Value | None = None
        self.graph.opset_imports[DOMAIN] = 1

    def tap(self, site: Site) -> Tap:
        if self.stream is None:
            return vision_tap(self.graph, site)
        return decoder_tap(self.graph, self.stream, site)

    def apply(self, one: Placed, hidden: ir.Value) -> ir.Value:
        """Call the op of ``one`` on ``hidden``; returns the new hidden state."""
        op = one.item.make_op()
        assert hidden.shape is not None
        arguments = [
            hidden,
            self.mask(one.item, hidden),
            *(self.input(one.name(name), ir.DataType.FLOAT, ["batch", hidden.shape[2]]) for name in op.runtime_inputs),
            *(
                self.constant(one.name(name), tensor.numpy(force=True))
                for name, tensor in zip(op.params, one.item.arguments(), strict=True)
            ),
        ]
        shapes = (tuple(tensor.shape) for tensor in one.item.arguments())
        key = (op.name, hidden.dtype, hidden.shape[2], *shapes)
        if key not in self.functions:
            self.functions[key] = self.register(op_function(one.item, hidden, self.opset))
        changed, *extras = self.call(self.functions[key], arguments, one.name("op"))
        for name, value in zip(op.extras, extras, strict=True):
            value.name = one.name(name)
            self.graph.outputs.append(value)
        changed.name, changed.shape = one.name("hidden"), hidden.shape
        return changed

    def mask(self, item: Intervention, hidden: ir.Value) -> ir.Value:
        """The scope mask [batch, sequence, 1] of an intervention, shared by all with its scope and phase."""
        scope, phase = item.scope, item.phase
        if self.stream is None:  # every token is an image token, and the graph runs at prefill only
            scope, phase = "all", "both"
        else:
            hidden = self.stream.base
        if (scope, phase) not in self.masks:
            function = self.register(mask_function(scope, phase, hidden, self.opset))
            past_length = self.past_length() if 1 in function.uses else None
            vision_mask = (
                self.input(VISION_MASK, ir.DataType.BOOL, ["batch", "sequence"]) if 2 in function.uses else None
            )
            (value,) = self.call(function, [hidden, past_length, vision_mask], f"{DOMAIN}.mask.{scope}.{phase}")
            self.masks[scope, phase] = self.switch(value) if self.switched else value
        return self.masks[scope, phase]

    def past_length(self) -> ir.Value:
        """Length of the KV cache, an int64 scalar."""
        if self._past_length is not None:
            return self._past_length
        key = next(value for value in self.graph.inputs if value.name == "past_key_values.0.key")
        shape = self.node("Shape", [key], ir.DataType.INT64, [4])
        axis = self.constant(f"{DOMAIN}.past_axis", np.array(2, np.int64))
        self._past_length = self.node("Gather", [shape, axis], ir.DataType.INT64, [])
        return self._past_length

    def switch(self, mask: ir.Value) -> ir.Value:
        """``mask`` times the overridable ``safetykit.enabled``."""
        enabled = next((value for value in self.graph.inputs if value.name == ENABLED), None)
        if enabled is None:
            enabled = self.constant(ENABLED, np.array(1, np.float32))
            self.graph.inputs.append(enabled)
        return self.node("Mul", [mask, enabled], ir.DataType.FLOAT, mask.shape)

    def register(self, made: OpFunction) -> OpFunction:
        """Add a function to the model, under a further name if its first one is taken."""
        name, number = made.function.name, 1
        while made.function.identifier() in self.model.functions:
            number += 1
            made.function.name = f"{name}_{number}"
        self.model.functions[made.function.identifier()] = made.function
        return made

    def call(self, made: OpFunction, arguments: Sequence[ir.Value | None], name: str) -> Sequence[ir.Value]:
        """Append a call of ``made``; its results get their types and shapes."""
        node = ir.node(
            made.function.name,
            [arguments[index] for index in made.uses],
            domain=DOMAIN,
            num_outputs=len(made.outputs),
            name=name,
        )
        self.graph.append(node)
        for index, (value, (dtype, shape)) in enumerate(zip(node.outputs, made.outputs, strict=True)):
            value.name, value.dtype, value.shape = f"{name}.{index}", dtype, shape
        return node.outputs

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], dtype: ir.DataType, shape: ir.Shape | Sequence[int] | None
    ) -> ir.Value:
        node = ir.node(op_type, inputs)
        self.graph.append(node)
        value = node.outputs[0]
        value.dtype, value.shape = dtype, None if shape is None else ir.Shape(shape)
        return value

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """The graph input ``name``, added when it is not there yet."""
        found = next((value for value in self.graph.inputs if value.name == name), None)
        if found is None:
            found = ir.val(name, dtype, shape)
            self.graph.inputs.append(found)
        return found

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initializer."""
        tensor = ir.tensor(np.array(array, order="C"), name=name)
        value = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value
