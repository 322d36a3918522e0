"""The residual stream of a decoder graph, found by its structure.

Names and export metadata vary between exporters and vanish under fusion; the shape of the graph does
not. Walking back from ``logits``:

1. A step is a rank-3 ``Add`` of two activations, or a ``Skip(Simplified)LayerNormalization``, which
   is such an addition fused with the norm that follows.
2. Of its two operands the residual one is an ancestor of the other: a branch is computed from the
   stream it is added to.
3. The producer of the residual operand is the step before. There are exactly 2·n_layers steps.
4. The branch of step 2i is the attention of layer i: among the KV inputs it reads
   ``past_key_values.i`` and no other. The branch of step 2i+1 is its MLP and reads none.
   Where attention and MLP both read what enters the layer (Cohere), the MLP's branch is computed from the operand of
   the step before instead.
5. Between two layers something may be added that is computed from neither the stream nor the cache (features of
   pictures, in Qwen3-VL). That is no step: the output of the layer is what stands before it.

A graph for which any of these fails is refused with the reason.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from ...adapters.errors import UnsupportedGraph
from ..base.logits import head_node, is_constant
from ..names import DOMAIN, LOGITS, cached

SKIP_NORMS = ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
_ADVICE = "Export the decoder with safetykit, or as a plain pre-norm decoder with KV cache inputs."


@dataclass(frozen=True)
class Step:
    """One addition to the residual stream.

    Attributes:
        node: the ``Add`` or skip-norm.
        residual: index of the node's residual input.
        branch: index of the node's attention or MLP input.
        beside: what the branch is computed from, where that is not the residual input: an MLP beside its attention.
    """

    node: ir.Node
    residual: int
    branch: int
    beside: ir.Value | None = None

    @property
    def fused(self) -> bool:
        """Whether the addition is fused with the next norm, so that no node yields the plain sum."""
        return self.node.op_type in SKIP_NORMS

    @property
    def source(self) -> ir.Value:
        """What the branch is computed from."""
        return self.operand(self.residual) if self.beside is None else self.beside

    def operand(self, index: int) -> ir.Value:
        """Input ``index`` of the node, which is known to be there."""
        value = self.node.inputs[index]
        assert value is not None
        return value


@dataclass(frozen=True)
class ResidualStream:
    """The residual stream of a decoder.

    Attributes:
        base: what enters layer 0, [batch, sequence, d_model].
        steps: attention and MLP additions of layer 0, 1, …; 2·n_layers in all.
        final_norm: what the LM head reads; None when the head was not recognised.
    """

    base: ir.Value
    steps: tuple[Step, ...]
    final_norm: ir.Value | None

    @property
    def n_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.steps) // 2


def find_residual_stream(model: ir.Model) -> ResidualStream:
    """Find the residual stream.

    Raises:
        UnsupportedGraph: already adapted, or not a decoder this finder understands, with the reason.
    """
    require_unadapted(model)
    graph = model.graph
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for node in graph
        for attribute in node.attributes.values()
    ):
        raise UnsupportedGraph(
            "The graph has control flow (If, Loop or Scan).", "Use a decoder export without merged branches."
        )
    n_layers = _count_layers(graph)
    logits = next((value for value in graph.outputs if value.name == LOGITS), None)
    if logits is None:
        raise UnsupportedGraph(
            f"The graph has no output `logits` but {_names(graph.outputs)}.", "Pass a decoder graph."
        )
    if any(node.op_type == "Add" and node.outputs[0].shape is None for node in graph):
        ShapeInferencePass()(model)
    steps, base = _walk(graph, logits, n_layers)
    _require_attention_order(steps, base)
    return ResidualStream(base, steps, _head_input(logits))


def bias_input(skip_norm: ir.Node) -> int:
    """Which input of a skip-norm is its bias: the simplified one has no beta before it."""
    return 3 if skip_norm.op_type == "SkipSimplifiedLayerNormalization" else 4


def skip_bias(skip_norm: ir.Node) -> ir.Value | None:
    """The bias that a skip-norm adds to its branch, if any."""
    at = bias_input(skip_norm)
    return skip_norm.inputs[at] if len(skip_norm.inputs) > at else None


def require_unadapted(model: ir.Model) -> None:
    """Refuse a graph that already holds safetykit ops: two adapters are baked in one go instead.

    Raises:
        UnsupportedGraph: the graph is adapted.
    """
    if any(domain == DOMAIN for domain, _, _ in model.functions) or any(node.domain == DOMAIN for node in model.graph):
        raise UnsupportedGraph(
            "The graph already holds a safetykit adapter.",
            "Start from the base graph and give all adapters at once: --adapter A --adapter B.",
        )


def _names(values: object) -> str:
    return ", ".join(f"`{value.name}`" for value in values) or "none"  # type: ignore[attr-defined]


def _count_layers(graph: ir.Graph) -> int:
    layers = {place[0] for value in graph.inputs if (place := cached(value.name))}
    if not layers:
        raise UnsupportedGraph(
            "The graph has no inputs past_key_values.0.key, ….", "Pass a decoder with KV cache inputs."
        )
    if layers != set(range(len(layers))):
        raise UnsupportedGraph(f"KV cache inputs cover layers {sorted(layers)}, not 0 to {len(layers) - 1}.", _ADVICE)
    return len(layers)


def _walk(graph: ir.Graph, logits: ir.Value, n_layers: int) -> tuple[tuple[Step, ...], ir.Value]:
    order = {node: index for index, node in enumerate(graph)}
    node: ir.Node | None = _last_step_node(logits, order)
    steps: list[Step] = []
    injections: list[tuple[ir.Node, ir.Value]] = []
    value = logits
    while node is not None and _is_addition(node):
        found = _orientations(node) or _beside(node)
        if not found and (split := _split_injection(node)):
            value = split[0]
            injections.append((node, split[1]))
        elif found or not steps:
            steps.append(_only(node, found))
            value = steps[-1].operand(steps[-1].residual)
        else:
            break
        node = value.producer()
    for injection, added in injections:
        if _depends(added, value):
            raise _no_orientation(injection, "neither is computed from the other")
    if len(steps) != 2 * n_layers:
        raise UnsupportedGraph(
            f"Walking back from `logits` found {len(steps)} residual additions, not {2 * n_layers} "
            f"for {n_layers} layers.",
            _ADVICE,
        )
    return tuple(reversed(steps)), value


def _last_step_node(logits: ir.Value, order: dict[ir.Node, int]) -> ir.Node:
    # Latest node first, so that the first addition met is the one nearest to the logits.
    heap = [-order[node] for node in (logits.producer(),) if node is not None]
    nodes, seen = list(order), set(heap)
    while heap:
        node = nodes[-heapq.heappop(heap)]
        if _is_addition(node):
            return node
        for value in node.inputs:
            producer = value.producer() if value is not None else None
            if producer is not None and -order[producer] not in seen:
                seen.add(-order[producer])
                heapq.heappush(heap, -order[producer])
    raise UnsupportedGraph("No residual addition leads to `logits`.", _ADVICE)


def _is_addition(node: ir.Node) -> bool:
    if node.op_type in SKIP_NORMS:
        return True
    if node.op_type != "Add" or node.domain not in ("", "ai.onnx"):
        return False
    return all(value is not None and not is_constant(value) and _rank(value) == 3 for value in node.inputs)


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _only(node: ir.Node, found: list[Step]) -> Step:
    if len(found) != 1:
        raise _no_orientation(node, f"{'each' if found else 'neither'} is computed from the other")
    return found[0]


def _beside(node: ir.Node) -> list[Step]:
    """The addition of an MLP to what its attention was just added to, where both read the same."""
    found = []
    for step in (Step(node, 0, 1), Step(node, 1, 0)) if node.op_type == "Add" else ():
        before = step.operand(step.residual).producer()
        for attention in _orientations(before) if before is not None and _is_addition(before) else ():
            source = attention.operand(attention.residual)
            if not attention.fused and _depends(step.operand(step.branch), source):
                found.append(Step(node, step.residual, step.branch, source))
    return found


def _no_orientation(node: ir.Node, how: str) -> UnsupportedGraph:
    return UnsupportedGraph(
        f"Of the two operands of the residual addition {node.name!r} {how} (parallel attention and MLP?).", _ADVICE
    )


def _split_injection(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The stream and what is added to it between layers: the one operand reads the KV cache and the other does not."""
    if node.op_type != "Add":
        return None
    left, right = node.inputs
    assert left is not None and right is not None
    reads = [_reads_cache(left, right), _reads_cache(right, left)]
    return None if reads[0] == reads[1] else (left, right) if reads[0] else (right, left)


def _reads_cache(value: ir.Value, other: ir.Value) -> bool:
    return any(found.is_graph_input() and cached(found.name) for found in ancestors(value, other))


def _orientations(node: ir.Node) -> list[Step]:
    steps = (Step(node, 0, 1), Step(node, 1, 0))
    return [step for step in steps if _depends(step.operand(step.branch), step.operand(step.residual))]


def _depends(value: ir.Value, ancestor: ir.Value) -> bool:
    # Through a skip-norm the branch sees the normed output and the stream the sum: compare producers.
    producer = ancestor.producer()
    if producer is None or producer.op_type not in SKIP_NORMS:
        return any(found is ancestor for found in ancestors(value, ancestor))
    return any(found.producer() is producer for found in ancestors(value, ancestor))


def ancestors(value: ir.Value, stop: ir.Value) -> Iterator[ir.Value]:
    """``value`` and what its data depends on, not looking past ``stop``, nor at mere shapes."""
    stop_node = stop.producer()
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        yield current
        node = current.producer()
        if current is stop or node is None or node is stop_node or node.op_type == "Shape":
            continue
        for source in node.inputs:
            if source is not None and source not in seen:
                seen.add(source)
                pending.append(source)


def _require_attention_order(steps: tuple[Step, ...], base: ir.Value) -> None:
    for index, step in enumerate(steps):
        layer, is_mlp = divmod(index, 2)
        found = {
            place[0]
            for value in ancestors(step.operand(step.branch), step.source)
            if value.is_graph_input() and (place := cached(value.name))
        }
        if found != (set() if is_mlp else {layer}):
            part = "MLP" if is_mlp else "attention"
            raise UnsupportedGraph(
                f"Residual addition {index} should be the {part} of layer {layer}, but reads the KV cache of "
                f"{', '.join(map(str, sorted(found))) or 'no layer'}.",
                _ADVICE,
            )


def head_output(logits: ir.Value) -> ir.Value:
    """What the LM head gives: the site ``logits``, from which the output differs by a soft cap c·tanh(x/c), if any."""
    node = logits.producer()
    while node is not None and node.op_type in ("Cast", "Identity", "Mul"):
        source = _data(node)
        node = source.producer() if source is not None else None
    if node is None or node.op_type != "Tanh" or (scaled := _data(node)) is None:
        return logits
    scaling = scaled.producer()
    found = _data(scaling) if scaling is not None and scaling.op_type in ("Div", "Mul") else None
    return scaled if found is None else found


def _data(node: ir.Node) -> ir.Value | None:
    """The one input of a node that is not constant."""
    found = [value for value in node.inputs if value is not None and not is_constant(value)]
    return found[0] if len(found) == 1 else None


def _unquantised(value: ir.Value | None) -> ir.Value | None:
    """The value before it was rounded to 8 bits for an integer product."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == "DynamicQuantizeLinear" else value


def _head_input(logits: ir.Value) -> ir.Value | None:
    """What the head reads, at all positions."""
    node = head_node(logits)
    found = _unquantised(node.inputs[0]) if node is not None else None
    kept = found.producer() if found is not None else None
    return kept.inputs[0] if kept is not None and kept.op_type == "Slice" else found
