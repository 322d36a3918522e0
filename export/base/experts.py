"""The experts of a layer as a model-local function: a scan over them, each of which sees the rows routed to it.

An expert without rows multiplies nothing. A scan hands each expert its slice of the weights without copying them. The sum
over experts is in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from ...toolkit.families.experts import DOMAIN, NODE, OneExpert, experts_in, weights_of
from .operators import to_onnx
from .optimise import optimise

_DTYPES = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16}
_ROWS = 3  # of the example that one expert is traced with


def add_experts(model: ir.Model, module: nn.Module, opset: int) -> None:
    """Give a decoder's nodes of experts the function that computes them, in place; other graphs stay as they are."""
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, NODE)]
    layers = experts_in(module)
    made: dict[Any, str] = {}
    for node in nodes:
        layer = node.attributes.pop("layer").as_string()
        shapes = tuple(tuple(weight.shape) for weight in weights_of(layers[layer]).values())
        states = node.inputs[0]
        assert states is not None and states.dtype is not None
        key = (type(layers[layer]), states.dtype, shapes)
        if key not in made:
            made[key] = f"{NODE}{len(made) or ''}"
            function = _function(layers[layer], _DTYPES[states.dtype], made[key], opset)
            model.functions[function.identifier()] = function
        node.op_type = made[key]
    if nodes:
        model.graph.opset_imports[DOMAIN] = 1


def _function(experts: Any, dtype: torch.dtype, name: str, opset: int) -> ir.Function:
    """(states [tokens, d_model], index [tokens, k], shares [tokens, k], weights …) → [tokens, d_model]."""
    kind = {value: key for key, value in _DTYPES.items()}[dtype]
    weights = weights_of(experts)
    count = len(next(iter(weights.values())))
    states, index, shares = (ir.val(f"experts.{one}") for one in ("states", "index", "shares"))
    states.type, index.type, shares.type = (ir.TensorType(one) for one in (kind, ir.DataType.INT64, kind))
    given = [ir.val(f"experts.{one}", kind) for one in weights]
    body, inputs = _body(experts, dtype, kind, states, index, shares)
    nodes: list[ir.Node] = []

    def node(op_type: str, values: list[ir.Value | None], **attributes: Any) -> ir.Value:
        made = ir.node(op_type, values, attributes=attributes or None)
        made.outputs[0].name = f"experts.{len(nodes)}"
        nodes.append(made)
        return made.outputs[0]

    zero = node("Mul", [node("Cast", [states], to=ir.DataType.FLOAT.value), _constant(node, np.array(0, np.float32))])
    numbers = _constant(node, np.arange(count))
    scan = ir.node(
        "Scan",
        [zero, numbers, *given],
        attributes={"body": body, "num_scan_inputs": 1 + len(given)},
    )
    scan.outputs[0].name = "experts.sum"
    nodes.append(scan)
    result = node("Cast", [scan.outputs[0]], to=kind.value)
    graph = ir.Graph([states, index, shares, *given], [result], nodes=nodes, opset_imports={"": opset}, name=name)
    return ir.Function(DOMAIN, name, graph=graph, attributes=())


def _constant(node: Any, array: np.ndarray) -> ir.Value:
    value: ir.Value = node("Constant", [], value=ir.tensor(array))
    return value


def _body(
    experts: Any, dtype: torch.dtype, kind: ir.DataType, states: ir.Value, index: ir.Value, shares: ir.Value
) -> tuple[ir.Graph, list[ir.Value]]:
    """One expert: (sum, its number, its weights) → sum. The rest it reads from around it."""
    traced = _traced(experts, dtype)
    width = weights_of(experts)
    total = ir.val("experts.one.total", ir.DataType.FLOAT)
    number = ir.val("experts.one.number", ir.DataType.INT64, ())
    nodes: list[ir.Node] = []

    def node(op_type: str, values: list[ir.Value | None], **attributes: Any) -> ir.Value:
        made = ir.node(op_type, values, attributes=attributes or None)
        made.outputs[0].name = f"experts.one.{len(nodes)}"
        nodes.append(made)
        return made.outputs[0]

    last = _constant(node, np.array([-1]))
    mine = node("Equal", [index, number])
    share = node("ReduceSum", [node("Mul", [shares, node("Cast", [mine], to=kind.value)]), last], keepdims=1)
    any_of = node("ReduceMax", [node("Cast", [mine], to=ir.DataType.INT32.value), last], keepdims=0)
    places = node("Transpose", [node("NonZero", [any_of])], perm=[1, 0])  # [rows, 1]
    rows = node("GatherND", [states, places])
    rename = {value: rows if at == 0 else None for at, value in enumerate(traced.graph.inputs)}
    given = []
    for value, name in zip(list(traced.graph.inputs)[1:], width, strict=True):
        inner = ir.val(f"experts.one.{name}", kind, value.shape)
        rename[value] = inner
        given.append(inner)
    output = traced.graph.outputs[0]
    for value, other in rename.items():
        assert other is not None
        ir.convenience.replace_all_uses_with(value, other)
    inside = list(traced.graph)
    held = list(traced.graph.initializers.values())
    traced.graph.remove(inside)
    for at, one in enumerate(inside):
        one.name = None
        for place, value in enumerate(one.outputs):
            value.name = f"experts.one.inner.{at}.{place}"
    for value in held:
        constant = _constant(node, value.const_value.numpy())  # type: ignore[union-attr]
        ir.convenience.replace_all_uses_with(value, constant)
    nodes += inside
    weighted = node("Mul", [output, node("GatherND", [share, places])])
    summed = node("ScatterND", [total, places, node("Cast", [weighted], to=ir.DataType.FLOAT.value)], reduction="add")
    return ir.Graph([total, number, *given], [summed], nodes=nodes, name="one_expert"), given


def _traced(experts: Any, dtype: torch.dtype) -> ir.Model:
    """What an expert computes of its rows and weights, traced."""
    module = OneExpert(experts)
    rows = next(one.shape for name, one in weights_of(experts).items() if name == "down_proj")
    width = rows[-1] if experts.is_transposed else rows[-2]
    weights = [torch.empty(one.shape[1:], dtype=dtype) for one in weights_of(experts).values()]
    example = (torch.empty(_ROWS, width, dtype=dtype), *weights)
    shapes = ({0: "rows"}, tuple({} for _ in weights))
    program = to_onnx(_Without(module), example, opset_version=20, dynamic_shapes=shapes)
    optimise(program.model)
    return program.model


class _Without(nn.Module):
    """One expert without the parameters of the layer, which it is given."""

    def __init__(self, one: OneExpert) -> None:
        super().__init__()
        self._one = [one]  # in a list, no submodule

    def forward(self, rows: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return self._one[0](rows, *weights)
