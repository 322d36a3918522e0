"""Low-rank updates that stay apart, x W + (x down) up: the update can be swapped and the weight stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from ...adapters.artifact.updates import WeightUpdate, by_parameter
from ...adapters.errors import UsageError
from ..manifest import Graph
from ..names import own
from ..passes import GraphPass, broken
from .building import GraphBuilder
from .layer_updates import LayerUpdate
from .places import Product, find_product


@dataclass(frozen=True)
class LowRank:
    """A change of one linear layer's weight [out, in] by ``(down up)ᵀ``.

    Attributes:
        layer: what the layer is in the base, with its weight.
        down: [in, rank].
        up: [rank, out].
    """

    layer: LayerUpdate
    down: np.ndarray
    up: np.ndarray

    @property
    def parameter(self) -> str:
        """The weight's name in the base."""
        return f"{self.layer.layer}.weight"


def low_rank_terms(updates: Iterable[WeightUpdate]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(down [in, rank], up [rank, out]) of each weight that is changed by low-rank updates alone; ranks add up."""
    found = {}
    for name, mine in by_parameter(updates).items():
        if all(update.low_rank for update in mine):
            down = np.concatenate([update.tensors["down"].float().numpy().T for update in mine], axis=1)
            up = np.concatenate([update.tensors["up"].float().numpy().T for update in mine])
            found[name] = (np.ascontiguousarray(down), np.ascontiguousarray(up))
    return found


def split_terms(
    layers: Sequence[LayerUpdate], updates: Iterable[WeightUpdate]
) -> tuple[tuple[LayerUpdate, ...], tuple[LowRank, ...]]:
    """Split ``layers`` into new values and low-rank terms that can stay beside the weights."""
    terms = low_rank_terms(updates)
    values, apart = [], []
    for layer in layers:
        if (term := terms.get(f"{layer.layer}.weight")) is not None:
            apart.append(LowRank(layer, *term))
            layer = replace(layer, new={name: value for name, value in layer.new.items() if name != "weight"})
        if layer.new:
            values.append(layer)
    return tuple(values), tuple(apart)


def add_terms(model: ir.Model, graph: Graph, terms: Sequence[LowRank]) -> ir.Model:
    """Add the terms of layers that lie in ``graph``, in place; every reader of a product then reads the sum.

    Raises:
        UsageError: a term is zero.
        UnsupportedGraph: a layer was not found for certain.
    """
    return LowRankPass(graph, terms).run(model)


class LowRankPass(GraphPass):
    """requires: no term is zero, and each one's product is found for certain.
    ensures: each factor is read once, and the graph gives what it gave, by the same names.
    """

    def __init__(self, graph: Graph, terms: Sequence[LowRank]) -> None:
        super().__init__()
        self.terms = tuple(term for term in terms if term.layer.graph == graph)
        self._outputs: list[str | None] = []
        self._products: list[Product] = []

    def requires(self, model: ir.Model) -> None:
        for term in self.terms:
            if not (term.up.any() and term.down.any()):
                raise UsageError(f"The low-rank update of {term.parameter} is zero.", "Fit the adapter again.")
            self._products.append(find_product(model.graph, term.layer, term.parameter))
        self._outputs = [value.name for value in model.graph.outputs]

    def change(self, model: ir.Model) -> None:
        for term, found in zip(self.terms, self._products, strict=True):
            _add(model, term, found)

    def ensures(self, model: ir.Model) -> None:
        if [value.name for value in model.graph.outputs] != self._outputs:
            raise broken("Outputs have other names after low-rank updates were added")
        for term in self.terms:
            for part in ("down", "up"):
                value = model.graph.initializers.get(own(f"{term.parameter}.{part}"))
                if value is None or len(value.uses()) != 1:
                    raise broken(f"The factor {part} of {term.parameter} is not read once")


def _add(model: ir.Model, term: LowRank, found: Product) -> None:
    builder = GraphBuilder(model)
    dtype, output, x = found.dtype, found.node.outputs[0], found.node.inputs[0]
    assert x is not None
    output.dtype = output.dtype or x.dtype
    readers, is_output = list(output.uses()), output.is_graph_output()
    name = own(f"{term.parameter}")
    down, up = (builder.constant(f"{name}.{part}", getattr(term, part).astype(dtype)) for part in ("down", "up"))
    inner = builder.node("MatMul", [x, down], output.dtype, None)
    outer = builder.node("MatMul", [inner, up], output.dtype, output.shape)
    if found.outputs is not None:  # the layer is packed with others: zeros at their outputs
        ends = found.outputs - found.first - term.up.shape[1]
        pads = builder.constant(f"{name}.pads", np.array([0, 0, found.first, 0, 0, ends]))
        outer.shape, outer.name = None, f"{name}.term"
        outer = builder.node("Pad", [outer, pads], output.dtype, output.shape)
    total = builder.node("Add", [output, outer], output.dtype, output.shape)
    for value, part in ((inner, "inner"), (outer, "outer"), (total, "sum")):
        value.name = f"{name}.{part}"
    for reader, index in readers:
        reader.replace_input_with(index, total)
    if is_output:
        at = list(model.graph.outputs).index(output)
        output.name, total.name = total.name, output.name
        model.graph.outputs[at] = total
