"""Adding nodes to a finished graph: functions, calls, constants, inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from ..names import ATTENTION_MASK, DOMAIN, INPUT_IDS, INPUTS_EMBEDS, past
from .functions import OpFunction


class GraphBuilder:
    """Appends to one model's graph; the caller sorts it afterwards.

    Attributes:
        target: where nodes are appended: the graph itself, or a subgraph of it.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model, self.graph = model, model.graph
        self.target = model.graph
        self.opset = self.graph.opset_imports.get("", 0)
        self._past_length: ir.Value | None = None
        self.graph.opset_imports[DOMAIN] = 1

    def past_length(self) -> ir.Value:
        """Length of the KV cache, an int64 scalar."""
        if self._past_length is None:
            inputs = {value.name: value for value in self.graph.inputs}
            total, new = inputs.get(ATTENTION_MASK), inputs.get(INPUTS_EMBEDS)
            if total is not None and new is not None and total.shape is not None and len(total.shape) == 2:
                # Not the length of the cache's tensor: runtimes may hand over a buffer for the longest answer.
                sizes = [self._size(total, 1), self._size(new, 1)]
                length = self.node("Sub", sizes, ir.DataType.INT64, [1])
            else:
                length = self._size(inputs[past(0, "key")], 2)
            self._past_length = self.node("Squeeze", [length], ir.DataType.INT64, [])
        return self._past_length

    def new_tokens(self) -> ir.Value:
        """Number of tokens in this call, an int64 scalar."""
        return self.node("Squeeze", [self._size(self._fed(), 1)], ir.DataType.INT64, [])

    def rows(self) -> ir.Value:
        """Number of rows of this call's batch, int64 [1]."""
        return self._size(self._fed(), 0)

    def _fed(self) -> ir.Value:
        """The tokens of this call, [batch, sequence, …]."""
        inputs = {value.name: value for value in self.graph.inputs}
        return inputs[INPUTS_EMBEDS] if INPUTS_EMBEDS in inputs else inputs[INPUT_IDS]

    def _size(self, value: ir.Value, axis: int) -> ir.Value:
        return self.node("Shape", [value], ir.DataType.INT64, [1], {"start": axis, "end": axis + 1})

    def register(self, made: OpFunction) -> OpFunction:
        """Add a function to the model, under a further name if its first one is taken."""
        name, number = made.function.name, 1
        while made.function.identifier() in self.model.functions:
            number += 1
            made.function.name = f"{name}_{number}"
        self.model.functions[made.function.identifier()] = made.function
        return made

    def call(self, made: OpFunction, arguments: Mapping[str, ir.Value], name: str) -> Sequence[ir.Value]:
        """Append a call of ``made``, which takes its arguments by name; its results get their types and shapes."""
        node = ir.node(
            made.function.name,
            [arguments[argument] for argument in made.uses],
            domain=DOMAIN,
            num_outputs=len(made.outputs),
            name=name,
        )
        self.target.append(node)
        for index, (value, (dtype, shape)) in enumerate(zip(node.outputs, made.outputs, strict=True)):
            value.name, value.dtype, value.shape = f"{name}.{index}", dtype, shape
        return node.outputs

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value],
        dtype: ir.DataType | None,
        shape: ir.Shape | Sequence[int | str] | None,
        attributes: Mapping[str, object] | None = None,
    ) -> ir.Value:
        """Append a standard operator with one result."""
        node = ir.node(op_type, inputs, attributes)
        self.target.append(node)
        value = node.outputs[0]
        value.dtype, value.shape = dtype, None if shape is None else ir.Shape(shape)
        return value

    def open(self, body: ir.Graph) -> ir.Graph:
        """Go on in ``body``, a subgraph-to-be, which may read every value of the graph."""
        self.target = body
        return body

    def close(self, body: ir.Graph, result: ir.Value) -> ir.Graph:
        """Go back to the graph; ``result`` is what ``body`` gives. Names in it differ from all others."""
        for number, node in enumerate(body):
            node.name = node.name if str(node.name).startswith(DOMAIN) else f"{body.name}.{number}"
            for index, value in enumerate(node.outputs):
                if value.name and not value.name.startswith(DOMAIN):
                    value.name = f"{body.name}.{number}.{index}"
        body.outputs.append(result)
        self.target = self.graph
        return body

    def input(self, name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
        """The graph input ``name``, added when it is not there yet."""
        found = next((value for value in self.graph.inputs if value.name == name), None)
        if found is None:
            found = ir.val(name, dtype, shape)
            self.graph.inputs.append(found)
        return found

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initializer."""
        tensor = ir.tensor(np.array(array, order="C"), name=name)
        value = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
        self.graph.register_initializer(value)
        return value
