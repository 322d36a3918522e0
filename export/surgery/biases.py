"""Biases that a linear layer lacks, added to finished graphs at the cost of no node.

``Gemm`` and skip-norms have an input for a bias, and the residual ``Add(residual, branch)`` becomes
``Sum(residual, branch, bias)``. While ops are baked a bias stands as an addition of its own, so that an op at the
branch's output sees it; :func:`merge_biases` then merges those that no op reads.
"""

from __future__ import annotations

import onnx_ir as ir

from ...adapters.errors import UnsupportedGraph
from ..names import BIAS, own
from ..passes import GraphPass, broken
from .layer_updates import LayerUpdate
from .places import bias_place, find_product, new_initializer, same_value
from .residual import SKIP_NORMS, bias_input


def update_bias(graph: ir.Graph, layer: LayerUpdate, parameter: str) -> bool:
    """Give a layer its new bias, where it has one or not; whether a value moved.

    Raises:
        UnsupportedGraph: the bias, or the place for one, was not found for certain.
    """
    found = find_product(graph, layer, parameter)
    if found.outputs is not None:
        raise UnsupportedGraph(
            f"The layer of {parameter} is packed with others.", "Use --mode bake, or base graphs exported by safetykit."
        )
    product, dtype = found.node, found.dtype
    old, new = layer.old.get("bias"), layer.new["bias"]
    place = bias_place(product)
    if old is None:
        if place is not None:
            raise UnsupportedGraph(
                f"The graph adds a constant where the base has no {parameter}.",
                "Use --mode bake, or base graphs exported by safetykit.",
            )
        return _add_bias(graph, product, new_initializer(graph, own(f"{parameter}"), new, dtype, parameter))
    if place is not None:
        held = place.node.inputs[place.index]
        assert held is not None and held.const_value is not None
        if same_value(held.const_value, old):
            return place.put(graph, parameter, new)
    raise UnsupportedGraph(
        f"{parameter} was not found beside its weight.", "Use --mode bake, or base graphs exported by safetykit."
    )


def _add_bias(graph: ir.Graph, product: ir.Node, bias: ir.Value) -> bool:
    """Add ``bias`` to a product that has none; whether it is other than zero."""
    output = product.outputs[0]
    assert bias.name is not None and bias.const_value is not None
    if product.op_type == "Gemm":
        product.resize_inputs(3)
        product.replace_input_with(2, bias)
    else:
        readers = list(output.uses())
        node = ir.node("Add", [output, bias], name=bias.name.replace(own(""), f"{BIAS}.", 1))
        graph.insert_after(product, node)
        total = node.outputs[0]
        total.name, total.dtype, total.shape = f"{bias.name}.sum", bias.dtype, output.shape
        for reader, index in readers:
            reader.replace_input_with(index, total)
        for index, one in enumerate(graph.outputs):
            if one is output:
                graph.outputs[index] = total
                total.name, output.name = output.name, f"{output.name}.unadapted"
    return bool(bias.const_value.numpy().any())


def merge_biases(model: ir.Model) -> ir.Model:
    """Merge the biases :func:`update_graph` added into the residual additions that alone read them.

    A bias whose sum an op or another node reads too keeps its own node.
    """
    return MergeBiasesPass().run(model)


class MergeBiasesPass(GraphPass):
    """requires: nothing; a graph without such additions stays as it is.
    ensures: every bias that was added is still read, once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._biases: list[ir.Value | None] = []

    def requires(self, model: ir.Model) -> None:
        self._biases = [node.inputs[1] for node in model.graph if (node.name or "").startswith(f"{BIAS}.")]

    def change(self, model: ir.Model) -> None:
        graph = model.graph
        for node in [node for node in graph if (node.name or "").startswith(f"{BIAS}.")]:
            product, bias = node.inputs
            uses = list(node.outputs[0].uses())
            if len(uses) != 1 or node.outputs[0].is_graph_output() or product is None or bias is None:
                continue
            reader, index = uses[0]
            if reader.op_type in SKIP_NORMS and index < 2:
                at = bias_input(reader)
                if len(reader.inputs) <= at:
                    reader.resize_inputs(at + 1)
                if reader.inputs[at] is not None:
                    continue
                reader.replace_input_with(at, bias)
            elif reader.op_type == "Add" and reader.domain in ("", "ai.onnx"):
                reader.op_type = "Sum"
                reader.resize_inputs(3)
                reader.replace_input_with(2, bias)
            else:
                continue
            reader.replace_input_with(index, product)
            graph.remove(node, safe=True)

    def ensures(self, model: ir.Model) -> None:
        for bias in self._biases:
            if bias is None or len(bias.uses()) != 1:
                raise broken(f"The bias {bias and bias.name} is read {len(bias.uses()) if bias else 0} times")
