"""The experts of a layer as a model-local function: a scan over them, each of which sees the rows routed to it.

An expert without rows multiplies nothing, and a scan hands each one its slice of the weights without copying them. The
sum over experts is in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from ...toolkit.model.experts import DOMAIN, NODE, OneExpert, experts_in, weights_of
from .scans import TYPES, Nodes, function, traced

_ROWS = 3  # of the example that one expert is traced with


def add_experts(model: ir.Model, module: nn.Module, opset: int) -> None:
    """Give a decoder's nodes of experts the functions that compute them, in place; other graphs stay as they are."""
    layers, made = experts_in(module), dict[Any, ir.Function]()
    for node in [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, NODE)]:
        experts: Any = layers[node.attributes.pop("layer").as_string()]
        states = node.inputs[0]
        assert states is not None
        key = (type(experts), states.dtype, *(weight.shape for weight in weights_of(experts).values()))
        if key not in made:
            dtype = next(one for one, kind in TYPES.items() if kind == states.dtype)
            made[key] = _function(experts, dtype, f"{NODE}{len(made) or ''}", opset)
            model.functions[made[key].identifier()] = made[key]
        node.op_type = made[key].name


def _function(experts: Any, dtype: torch.dtype, name: str, opset: int) -> ir.Function:
    """(states [tokens, d_model], index [tokens, k], shares [tokens, k], weights …) → [tokens, d_model]."""
    kind, weights = TYPES[dtype], weights_of(experts)
    states, index, shares = (ir.val(f"experts.{one}") for one in ("states", "index", "shares"))
    states.dtype, index.dtype, shares.dtype = kind, ir.DataType.INT64, kind
    given = [ir.val(f"experts.{one}", kind) for one in weights]
    nodes = Nodes("experts")
    nothing = nodes.add("Mul", [nodes.cast(states, ir.DataType.FLOAT), nodes.constant(np.array(0, np.float32))])
    numbers = nodes.constant(np.arange(len(next(iter(weights.values())))))
    body = _one_expert(experts, dtype, opset, states, index, shares)
    (total,) = nodes.scan(body, [nothing], [numbers, *given], 1)
    return function(DOMAIN, name, [states, index, shares, *given], [nodes.cast(total, kind)], nodes, opset)


def _one_expert(
    experts: Any, dtype: torch.dtype, opset: int, states: ir.Value, index: ir.Value, shares: ir.Value
) -> ir.Graph:
    """(sum, number of the expert, its weights …) → sum. The rest it reads from around it."""
    kind, weights, nodes = TYPES[dtype], weights_of(experts), Nodes("experts.one")
    total = ir.val("experts.one.total")
    number = ir.val("experts.one.number", ir.DataType.INT64, ())
    given = [ir.val(f"experts.one.{name}", kind, weight.shape[1:]) for name, weight in weights.items()]
    last = nodes.constant(np.array([-1]))
    mine = nodes.add("Equal", [index, number])
    share = nodes.add("ReduceSum", [nodes.add("Mul", [shares, nodes.cast(mine, kind)]), last], keepdims=1)
    hit = nodes.add("ReduceMax", [nodes.cast(mine, ir.DataType.INT32), last], keepdims=0)
    places = nodes.add("Transpose", [nodes.add("NonZero", [hit])], perm=[1, 0])  # [rows, 1]
    rows = nodes.add("GatherND", [states, places])
    width = weights["down_proj"].shape[2 if experts.is_transposed else 1]
    example = [torch.empty(_ROWS, width, dtype=dtype)]
    example += [torch.empty(weight.shape[1:], dtype=dtype) for weight in weights.values()]
    one = _Given(OneExpert(experts))
    (computed,) = nodes.inline(
        traced(one, tuple(example), ({0: "rows"}, tuple({} for _ in weights)), opset), [rows, *given]
    )
    weighted = nodes.add("Mul", [computed, nodes.add("GatherND", [share, places])])
    summed = nodes.add("ScatterND", [total, places, nodes.cast(weighted, ir.DataType.FLOAT)], reduction="add")
    for value in (total, summed):
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(["tokens", width])
    return ir.Graph([total, number, *given], [summed], nodes=nodes, name="one_expert")


class _Given(nn.Module):
    """One expert without the parameters of its layer, which it is given."""

    def __init__(self, one: OneExpert) -> None:
        super().__init__()
        self._one = [one]  # in a list, no submodule
        self.eval()

    def forward(self, rows: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._one[0](rows, *weights)
        return found
