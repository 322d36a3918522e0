"""Small changes of a fresh graph that ONNX Runtime's own optimiser does not make, or needs before it can fuse.

No change reads the value of a weight.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass

from ..passes import GraphPass, broken


def simplify(model: ir.Model) -> None:
    """Simplify ``model`` in place; what it computes stays the same but for the rounding of norms."""
    SimplifyPass().run(model)


class SimplifyPass(GraphPass):
    """requires: nothing.
    ensures: inputs and outputs are those before, and no more nodes than before compute them.
    """

    def requires(self, model: ir.Model) -> None:
        self.note_interface(model)
        self._nodes = len(model.graph)

    def change(self, model: ir.Model) -> None:
        for node in list(model.graph):
            change = _CHANGES.get(node.op_type)
            if change is not None and node.domain == "":
                change(node)
        CommonSubexpressionEliminationPass()(model)
        RemoveUnusedNodesPass()(model)

    def ensures(self, model: ir.Model) -> None:
        self.ensure_interface(model, "its nodes simplified")
        if len(model.graph) > self._nodes:
            raise broken(f"Simplified, the graph has {len(model.graph)} nodes instead of {self._nodes}")


def _transposed_back(node: ir.Node) -> None:
    """Two transpositions that undo each other."""
    source = node.inputs[0]
    before = source.producer() if source is not None else None
    perms = [one.attributes.get("perm") for one in (before, node) if one is not None and one.op_type == "Transpose"]
    if before is None or len(perms) < 2 or perms[0] is None or perms[1] is None:
        return
    first, second = perms[0].as_ints(), perms[1].as_ints()
    if [first[axis] for axis in second] == list(range(len(first))):
        _instead(node, before.inputs[0])


def _reshaped_back(node: ir.Node) -> None:
    """A reshape to the shape that a value has, or had before a reshape."""
    source = node.inputs[0]
    before = source.producer() if source is not None else None
    at_first = before.inputs[0] if before is not None and before.op_type == "Reshape" else None
    for value in (at_first, source):
        if value is not None and _known(value.shape) and value.shape == node.outputs[0].shape:
            return _instead(node, value)


def _divided(node: ir.Node) -> None:
    """x · (1 / √v) as x / √v: ONNX Runtime knows a root-mean-square norm by that, and makes it one node with the
    addition before."""
    for at, value in enumerate(node.inputs):
        inverse = value.producer() if value is not None else None
        if inverse is None or inverse.op_type != "Reciprocal":
            continue
        root, other = inverse.inputs[0], node.inputs[1 - at]
        producer = root.producer() if root is not None else None
        if producer is None or producer.op_type != "Sqrt":
            continue
        division = ir.node("Div", [other, root], name=node.name)
        assert node.graph is not None
        node.graph.insert_before(node, division)
        old, new = node.outputs[0], division.outputs[0]
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        new.name = old.name
        node.graph.remove(node, safe=True)
        return


def _known(shape: ir.Shape | None) -> bool:
    """Whether equal shapes are the same: a dimension without a name may be any."""
    return shape is not None and not any(isinstance(one, ir.SymbolicDim) and one.value is None for one in shape)


def _instead(node: ir.Node, value: ir.Value | None) -> None:
    output = node.outputs[0]
    if value is not None and not output.is_graph_output():
        ir.convenience.replace_all_uses_with(output, value)


_CHANGES: dict[str, Callable[[ir.Node], None]] = {
    "Transpose": _transposed_back,
    "Reshape": _reshaped_back,
    "Mul": _divided,
}
