"""Weight updates in finished graphs: an initializer changes, no node is added.

A parameter's initializer (:mod:`.places` finds it) is replaced by ``safetykit.<parameter>`` with the new value, kept in
the adapter's own data file; the base's weights file stays as it is. A bias that a layer lacks costs no node either:
:mod:`.biases`.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from ...adapters.errors import UnsupportedGraph, UsageError
from ..manifest import Graph
from ..names import BIAS, is_own, own
from ..passes import GraphPass, broken
from .biases import update_bias
from .layer_updates import LayerUpdate
from .places import find_place


def update_graph(model: ir.Model, graph: Graph, layers: Sequence[LayerUpdate]) -> ir.Model:
    """Give the layers that lie in ``graph`` their new weights, in place, and return ``model``.

    To be called before interventions are baked; :func:`merge_biases` follows after them.

    Raises:
        UsageError: nothing changes at the graph's precision, or a value overflows it.
        UnsupportedGraph: the graph is adapted already, or a parameter was not found for certain.
    """
    return UpdatePass(graph, layers).run(model)


class UpdatePass(GraphPass):
    """requires: the graph holds no adapter yet.
    ensures: every new weight is an initializer that a node reads; but for sums with biases no node was added, and none
    is gone.
    """

    def __init__(self, graph: Graph, layers: Sequence[LayerUpdate]) -> None:
        super().__init__()
        self.graph_name, self.layers = graph, tuple(layer for layer in layers if layer.graph == graph)
        self._before: set[ir.Node] = set()

    def requires(self, model: ir.Model) -> None:
        if taken := [name for name in model.graph.initializers if is_own(name)]:
            raise UnsupportedGraph(
                f"The graph already holds a safetykit adapter (`{taken[0]}`).",
                "Start from the base graph and give all adapters at once: --adapter A --adapter B.",
            )
        self._before = set(model.graph)

    def change(self, model: ir.Model) -> None:
        moved = [_update_layer(model.graph, layer) for layer in self.layers]
        if self.layers and not any(moved):
            raise UsageError(
                f"The weight updates change nothing in the {self.graph_name} graph at its precision.",
                "Fit the adapter again, or export in fp32.",
            )

    def ensures(self, model: ir.Model) -> None:
        now = set(model.graph)
        if lost := self._before - now:
            raise broken(f"{len(lost)} nodes are gone after weights were updated")
        if strange := [node for node in now - self._before if not (node.name or "").startswith(f"{BIAS}.")]:
            raise broken(f"Updating weights has added {strange[0].op_type} {strange[0].name!r}")
        for layer in self.layers:
            for leaf in layer.new:
                value = model.graph.initializers.get(own(f"{layer.layer}.{leaf}"))
                if value is None or not value.uses():
                    raise broken(f"No node reads the new {layer.layer}.{leaf}")


def _update_layer(graph: ir.Graph, layer: LayerUpdate) -> bool:
    """Whether some value moved."""
    moved = False
    for name in sorted(layer.new, reverse=True):  # weight before bias: where a layer's bias lies shows at its weight
        parameter = f"{layer.layer}.{name}"
        if name == "bias" and "weight" in layer.old:
            moved |= update_bias(graph, layer, parameter)
            continue
        place = find_place(graph, layer.old[name], parameter)
        moved |= place.put(graph, parameter, layer.new[name])
    return moved
