"""Functions of a graph that go through something one after the other: a ``Scan`` whose body is traced from PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from .operators import to_onnx
from .optimise import optimise

TYPES = {torch.float32: ir.DataType.FLOAT, torch.float16: ir.DataType.FLOAT16}


class Nodes(list[ir.Node]):
    """Nodes in order, whose values have names of their own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def add(self, op_type: str, inputs: Sequence[ir.Value | None], outputs: int = 1, **attributes: Any) -> ir.Value:
        """One more node; its first output."""
        node = ir.node(op_type, inputs, attributes=attributes or None, num_outputs=outputs)
        for value in node.outputs:
            value.name = f"{self.name}.{len(self)}.{value.index()}"
        self.append(node)
        return node.outputs[0]

    def constant(self, array: np.ndarray) -> ir.Value:
        """A value that is always the same."""
        return self.add("Constant", [], value=ir.tensor(array))

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.add("Cast", [value], to=dtype.value)

    def inline(self, model: ir.Model, inputs: Sequence[ir.Value]) -> list[ir.Value]:
        """The nodes of a graph, which read ``inputs``; its outputs."""
        graph = model.graph
        for value, given in zip(list(graph.inputs), inputs, strict=True):
            ir.convenience.replace_all_uses_with(value, given)
        for value in list(graph.initializers.values()):
            assert value.const_value is not None
            ir.convenience.replace_all_uses_with(value, self.constant(value.const_value.numpy()))
        outputs, nodes = list(graph.outputs), list(graph)
        graph.outputs.clear()
        graph.remove(nodes)
        for node in nodes:
            node.name = None
            for value in node.outputs:
                value.name = f"{self.name}.{len(self)}.{value.index()}"
            self.append(node)
        return outputs

    def scan(
        self, body: ir.Graph, states: Sequence[ir.Value], parts: Sequence[ir.Value], outputs: int
    ) -> list[ir.Value]:
        """Run ``body`` on each of ``parts`` along their first axis: (states …, part …) → (states …, results …).

        Args:
            outputs: how many the body has.
        """
        self.add("Scan", [*states, *parts], outputs, body=body, num_scan_inputs=len(parts))
        return list(self[-1].outputs)


def traced(module: nn.Module, example: tuple[torch.Tensor, ...], dynamic: tuple[Any, ...], opset: int) -> ir.Model:
    """What a module computes, optimised.

    Args:
        dynamic: for each argument its symbolic axes.
    """
    model = to_onnx(module, example, opset_version=opset, dynamic_shapes=dynamic).model
    optimise(model)
    return model


def function(
    domain: str, name: str, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], nodes: Nodes, opset: int
) -> ir.Function:
    """A function of a model."""
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": opset}, name=name)
    return ir.Function(domain, name, graph=graph, attributes=())
