"""The decoder for calls after the prompt: the same graph without its branch, so that nothing in it is control flow.

ONNX Runtime captures no CUDA graph of a model with an ``If``, whatever the call would run. The branch of a detector
runs at prefill only; where tokens are decoded the ``If`` gives NaN. So the graph for those calls has, in its place, the
body that gives NaN. Inputs, outputs and weights files are the same, and only prompts need the graph with the branch.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from ...adapters.errors import UnsupportedGraph
from ..names import RISK
from ..passes import GraphPass, broken
from .capture import control_flow


def without_branch(model: ir.Model) -> ir.Model:
    """Take the branch out of a decoder, in place, and return it.

    Raises:
        UnsupportedGraph: it has none.
    """
    return AnsweringPass().run(model)


class AnsweringPass(GraphPass):
    """requires: ``risk_score`` is what an ``If`` gives.
    ensures: no control flow is left, inputs and outputs are those before, and what was outside the ``If`` reads what it
    read.
    """

    def requires(self, model: ir.Model) -> None:
        _branch(model)
        self.note_interface(model)
        self.note_checker(model)

    def change(self, model: ir.Model) -> None:
        graph, node = model.graph, _branch(model)
        body = node.attributes["else_branch"].as_graph()
        (nothing,), inner = body.outputs, list(body)
        body.outputs.clear()
        for one in inner:
            body.remove(one)
            graph.insert_before(node, one)
        risk = node.outputs[0]
        risk.replace_all_uses_with(nothing, replace_graph_outputs=True)
        risk.name, nothing.name = None, RISK
        nothing.type, nothing.shape = risk.type, risk.shape
        graph.remove(node)
        inputs = set(graph.inputs)
        RemoveUnusedNodesPass()(model)
        RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        for value in list(graph.initializers.values()):
            if not value.uses() and value not in inputs:
                del graph.initializers[str(value.name)]

    def ensures(self, model: ir.Model) -> None:
        self.ensure_checker(model, "its branch taken out")
        if control_flow(model):
            raise broken("The decoder for the answer still has control flow")
        self.ensure_interface(model, "its branch taken out")


def _branch(model: ir.Model) -> ir.Node:
    risk = next((value for value in model.graph.outputs if value.name == RISK), None)
    node = risk.producer() if risk is not None else None
    if node is None or node.op_type != "If":
        raise UnsupportedGraph(f"No branch gives `{RISK}`.", "Use the decoder as it is.")
    return node
