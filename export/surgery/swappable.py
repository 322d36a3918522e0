"""Making a finished graph's adapter swappable: which initializers are its parameters, and opening them to overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.updates import WeightUpdate
from ...adapters.errors import UnsupportedGraph, UsageError
from ...adapters.ops.branch import Branch
from ...adapters.ops.op import Corrector, Observer
from ..manifest import GRAPHS, LAYOUT, ExportManifest, Graph, ParameterInfo
from ..names import BRANCH, THRESHOLD, TOKEN, own
from ..passes import GraphPass, broken
from .adapter_file import write_adapter_file
from .bake import Placed
from .layer_updates import LayerUpdate
from .lowrank import LowRank
from .places import reads_transposed


def every_update(adapters: Sequence[Adapter]) -> list[WeightUpdate]:
    """The weight updates of all adapters, in order."""
    return [update for adapter in adapters for update in adapter.updates]


def require_swappable(placed: Sequence[Placed]) -> None:
    """Refuse ops whose parameters cannot be swapped by themselves.

    Raises:
        UsageError: an op retrieves: its texts lie outside the graph and would have to follow.
    """
    for one in placed:
        if isinstance(one.item.make_op(), Observer):
            raise UsageError(
                f"{one.item.op} at {one.item.site} cannot be swapped: the texts of its index would not follow.",
                "Export it with --mode bake; an external index can be changed without a new export.",
            )


def describe_parameters(
    model: ir.Model,
    graph: Graph,
    placed: Sequence[Placed],
    updated: Sequence[LayerUpdate],
    terms: Sequence[LowRank],
    branch: Branch | None,
) -> list[ParameterInfo]:
    """Every parameter of the adapters that lies in ``model``, after all surgery.

    Args:
        placed, updated, branch: what of the adapters is in this graph.
        terms: of all graphs.

    Raises:
        UnsupportedGraph: the graph lacks one: an override of it would change nothing.
    """
    found = []

    def add(
        name: str,
        source: str,
        open_axes: dict[int, str] | None = None,
        *,
        weight: bool = False,
        strength: bool = False,
    ) -> None:
        value = model.graph.initializers.get(name)
        if value is None or value.const_value is None or value.is_graph_input() or not value.uses():
            raise UnsupportedGraph(f"The graph does not read the parameter {name}.", "Report this graph.")
        array = np.atleast_1d(value.const_value.numpy())  # see open_parameters
        node, index = next(iter(value.uses()))
        found.append(
            ParameterInfo(
                name=name,
                graph=graph,
                source=source,
                shape=tuple((open_axes or {}).get(axis, size) for axis, size in enumerate(array.shape)),
                dtype=str(array.dtype),  # type: ignore[arg-type]
                transposed=weight and array.ndim == 2 and reads_transposed(node, index),
                strength=strength,
            )
        )

    for one in placed:
        op = one.item.make_op()
        scales = op.strength if isinstance(op, Corrector) else None
        for name in op.params:
            axes = {1: f"{one.index}_{name}_rank"} if name in op.ranked else None
            add(one.name(name), f"{one.index}.{name}", axes, strength=name == scales)
    if branch:
        for name in branch.make_op().params:
            add(f"{BRANCH}.{name}", f"branch.{name}")
    if THRESHOLD in model.graph.initializers:
        add(THRESHOLD, "detector.threshold")
        add(TOKEN, "detector.refusal_token")
    for layer in updated:
        for leaf in layer.new:
            add(own(f"{layer.layer}.{leaf}"), f"update.{layer.layer}.{leaf}", weight=True)
    for term in terms:
        if term.layer.graph == graph:
            rank = f"{term.parameter}_rank"
            add(own(f"{term.parameter}.down"), f"update.{term.parameter}.down", {1: rank})
            add(own(f"{term.parameter}.up"), f"update.{term.parameter}.up", {0: rank})
    return found


def open_parameters(model: ir.Model, parameters: Sequence[ParameterInfo]) -> None:
    """Make initializers overridable: they become inputs as well, and their values the defaults.

    Scalars become vectors of one number: ONNX Runtime's adapter files cannot hold tensors without axes.
    """
    OpenPass(parameters).run(model)


class OpenPass(GraphPass):
    """requires: every parameter is an initializer that a node reads, and not open yet.
    ensures: every one is an input and an initializer of the stated shape, and nothing else became an input.
    """

    def __init__(self, parameters: Sequence[ParameterInfo]) -> None:
        super().__init__()
        self.parameters = tuple(parameters)
        self._inputs: list[str | None] = []

    def requires(self, model: ir.Model) -> None:
        for one in self.parameters:
            value = model.graph.initializers.get(one.name)
            if value is None or value.const_value is None or value.is_graph_input() or not value.uses():
                raise UnsupportedGraph(f"The graph does not read the parameter {one.name}.", "Report this graph.")
        self._inputs = [value.name for value in model.graph.inputs]

    def change(self, model: ir.Model) -> None:
        graph = model.graph
        for one in self.parameters:
            value = graph.initializers[one.name]
            assert value.const_value is not None and value.shape is not None
            if len(value.shape) == 0:
                value = _as_vector(graph, value)
            value.shape = ir.Shape(one.shape)
            graph.inputs.append(value)

    def ensures(self, model: ir.Model) -> None:
        names = [value.name for value in model.graph.inputs]
        if names != [*self._inputs, *(one.name for one in self.parameters)]:
            raise broken("The inputs are not those before and the parameters")
        for one in self.parameters:
            value = model.graph.initializers.get(one.name)
            if value is None or value.shape != ir.Shape(one.shape):
                raise broken(f"The parameter {one.name} has no default of shape {one.shape}")


def _as_vector(graph: ir.Graph, scalar: ir.Value) -> ir.Value:
    """A vector under the scalar's name, that the scalar's readers read through a node."""
    name = str(scalar.name)
    tensor = ir.tensor(np.atleast_1d(scalar.const_value.numpy()), name=name)  # type: ignore[union-attr]
    graph.initializers.pop(name)
    vector = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
    graph.register_initializer(vector)
    node = ir.node("Squeeze", [vector], name=f"{name}.scalar")
    result = node.outputs[0]
    result.name, result.dtype, result.shape = f"{name}.scalar", tensor.dtype, ir.Shape([])
    scalar.replace_all_uses_with(result)
    graph.insert_before(graph[0], node)
    return vector


def write_adapter_files(folder: Path, manifest: ExportManifest) -> None:
    """Write the defaults of each graph as an ``.onnx_adapter`` file beside it."""
    for graph in GRAPHS:
        names = [one.name for one in manifest.parameters if one.graph == graph]
        if not names:
            continue
        initializers = ir.load(folder / manifest.graph_file(graph)).graph.initializers
        arrays = {}
        for name in names:
            tensor = initializers[name].const_value
            assert tensor is not None
            arrays[name] = np.array(tensor.numpy())
        write_adapter_file((folder / manifest.graph_file(graph)).parent / LAYOUT.adapter_file(graph), arrays, manifest)
