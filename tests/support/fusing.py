"""A decoder as fused builders make it: every residual addition in one node with the norm that follows."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from safetykit.export.surgery.residual import find_residual_stream


def fused(model: ir.Model) -> ir.Model:
    """``model`` with skip-norms in place of ``Add`` and RMS norm, changed in place."""
    for step in find_residual_stream(model).steps:
        total = step.node.outputs[0]
        last = _norm_of(total)
        weight = next(value for value in last.inputs if value.is_initializer())
        skip_norm = ir.node(
            "SkipSimplifiedLayerNormalization",
            [*step.node.inputs, weight],
            {"epsilon": 1e-6},
            domain="com.microsoft",
            num_outputs=4,
        )
        for value in (skip_norm.outputs[0], skip_norm.outputs[3]):
            value.shape, value.dtype = total.shape, total.dtype
        model.graph.insert_before(step.node, skip_norm)
        total.replace_all_uses_with(skip_norm.outputs[3])
        last.outputs[0].replace_all_uses_with(skip_norm.outputs[0])
    model.graph.opset_imports["com.microsoft"] = 1
    RemoveUnusedNodesPass()(model)
    assert all(step.fused for step in find_residual_stream(model).steps)
    return model


def _norm_of(total: ir.Value) -> ir.Node:
    """The product with the weight that ends the RMS norm of ``total``."""
    node = next(node for node, _ in total.uses() if node.op_type == "Pow")
    while not (node.op_type == "Mul" and any(value.is_initializer() for value in node.inputs)):
        node = node.outputs[0].consumers()[0]
    return node
