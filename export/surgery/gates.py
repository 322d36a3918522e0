"""Held gates in a graph: how a decision made on the prompt reaches the calls that generate the answer.

A decoder graph has no memory but what its caller hands back to it, so the decision travels in one of two ways:

``inputs``  Intervention k gets the input ``safetykit.<k>.held`` [batch] float32, to be fed with what the call before
            gave as ``safetykit.<k>.score``; any number, such as 0, in a call that decides. Leaving it out is an
            error of the session, so a caller that knows nothing of it gets no answer rather than an unguarded one.
``cache``   One more layer of the KV cache: ``past_key_values.<n_layers>.key`` and ``.value`` in, ``present.…`` out, of
            the same shape and type as the others. Runtimes that loop over the cache carry it unknowingly; they must
            only be told of n_layers + 1 layers. Channel j of the keys holds +1 or −1, the j-th held gate open or
            closed, at every position and head, so that cutting the cache back, reordering its rows, or handing over
            a buffer for the longest answer leaves it readable. The values are the keys again.

Which call decides, the graph works out itself, by the rule of :mod:`safetykit.adapters.ops.gating`: the first one, and
any that brings more than one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...adapters.errors import UnsupportedGraph
from ..names import GATES, HELD, intervention, past, present
from .building import GraphBuilder

GateState = Literal["inputs", "cache"]


class HeldGates:
    """The held gates of one decoder graph; :meth:`close` once all ops are in."""

    def __init__(self, builder: GraphBuilder, kind: GateState, indices: Sequence[int], n_layers: int) -> None:
        """``indices`` are those of the interventions whose gates are held.

        Raises:
            UnsupportedGraph: a layer of the cache has too few channels for them.
        """
        self._builder, self._kind, self._n_layers = builder, kind, n_layers
        self._channels = {index: at for at, index in enumerate(indices)}
        self._margins: dict[int, ir.Value] = {}
        self._decides: ir.Value | None = None
        self._rows: ir.Value | None = None
        if kind == "cache":
            self._like = next(value for value in builder.graph.inputs if value.name == past(0, "key"))
            shape = self._like.shape
            if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or not isinstance(shape[3], int):
                raise UnsupportedGraph(f"The cache's keys are of shape {shape}.", "Hold the gates by inputs.")
            self._heads, self._width = shape[1], shape[3]
            if len(indices) > self._width:
                raise UnsupportedGraph(
                    f"{len(indices)} held gates do not fit into the {self._width} channels of a cache layer.",
                    "Hold fewer, or by inputs.",
                )

    def decides(self) -> ir.Value:
        """Whether this call decides, a bool scalar."""
        if self._decides is None:
            make = self._node
            first = make("Equal", [self._builder.past_length(), self._whole("zero", 0)], ir.DataType.BOOL, [])
            several = make("Greater", [self._builder.new_tokens(), self._whole("one", 1)], ir.DataType.BOOL, [])
            self._decides = make("Or", [first, several], ir.DataType.BOOL, [])
        return self._decides

    def held(self, index: int) -> ir.Value:
        """What intervention ``index`` was told before, [batch] float32."""
        if self._kind == "inputs":
            return self._builder.input(intervention(index, HELD), ir.DataType.FLOAT, ["batch"])
        if self._rows is None:
            self._rows = self._last_entry()
        at = self._whole(f"channel.{self._channels[index]}", self._channels[index])
        column = self._node("Gather", [self._rows, at], self._like.dtype, ["batch"], {"axis": 1})
        return self._node("Cast", [column], ir.DataType.FLOAT, ["batch"], {"to": int(ir.DataType.FLOAT)})

    def decided(self, index: int, margin: ir.Value) -> None:
        """Note the margin that holds for this call."""
        self._margins[index] = margin

    def close(self) -> None:
        """Hand on what holds; ``inputs`` do so by the ``score`` of each op."""
        if self._kind == "inputs":
            return
        opened, closed = (self._real(name, number) for name, number in (("open", [1.0]), ("closed", [-1.0])))
        columns = []
        for margin in self._margins.values():
            positive = self._node("Greater", [margin, self._real("nought", [0.0])], ir.DataType.BOOL, ["batch"])
            sign = self._node("Where", [positive, opened, closed], ir.DataType.FLOAT, ["batch"])
            columns.append(self._node("Unsqueeze", [sign, self._axes(1)], ir.DataType.FLOAT, ["batch", 1]))
        if missing := self._width - len(columns):
            size = self._node("Concat", [self._size(0), self._axes(missing)], ir.DataType.INT64, [2], {"axis": 0})
            nought = self._real("nought", [0.0])
            columns.append(self._node("Expand", [nought, size], ir.DataType.FLOAT, ["batch", missing]))
        row = self._node("Concat", columns, ir.DataType.FLOAT, ["batch", self._width], {"axis": 1})
        row = self._node("Cast", [row], self._like.dtype, ["batch", self._width], {"to": int(self._like.dtype)})
        row = self._node("Unsqueeze", [row, self._axes(1, 2)], self._like.dtype, ["batch", 1, 1, self._width])
        # A buffer for the longest answer is filled whole; a cache that grows, grows by the new tokens.
        total = self._node("Add", [self._builder.past_length(), self._builder.new_tokens()], ir.DataType.INT64, [])
        length = self._node("Max", [self._size(2), total], ir.DataType.INT64, [1])
        sizes = [self._size(0), self._axes(self._heads), length, self._axes(self._width)]
        size = self._node("Concat", sizes, ir.DataType.INT64, [4], {"axis": 0})
        shape = next(value.shape for value in self._builder.graph.outputs if value.name == present(0, "key"))
        key = self._node("Expand", [row, size], self._like.dtype, shape)
        value = self._node("Identity", [key], self._like.dtype, shape)
        for name, result in (("key", key), ("value", value)):
            self._builder.input(past(self._n_layers, name), self._like.dtype, self._like.shape)
            result.name = present(self._n_layers, name)
            self._builder.graph.outputs.append(result)

    def _last_entry(self) -> ir.Value:
        """The last position's channels [batch, head_dim]; zeros before there is one."""
        dtype = self._like.dtype
        before = self._builder.input(past(self._n_layers, "key"), dtype, self._like.shape)
        sizes = [self._size(0), self._axes(self._heads, 1, self._width)]
        size = self._node("Concat", sizes, ir.DataType.INT64, [4], {"axis": 0})
        zero = self._node("Cast", [self._real("nought", [0.0])], dtype, [1], {"to": int(dtype)})
        blank = self._node("Expand", [zero, size], dtype, ["batch", self._heads, 1, self._width])
        grown = self._node("Concat", [blank, before], dtype, None, {"axis": 2})
        at, shape = self._whole("last", -1), ["batch", self._heads, self._width]
        last = self._node("Gather", [grown, at], dtype, shape, {"axis": 2})
        return self._node("Gather", [last, self._whole("zero", 0)], dtype, ["batch", self._width], {"axis": 1})

    def _size(self, axis: int) -> ir.Value:
        """One size of the extra layer's keys, int64 [1]; rows are counted at the embeddings of this call."""
        if axis == 0:
            return self._builder.rows()
        before = self._builder.input(past(self._n_layers, "key"), self._like.dtype, self._like.shape)
        return self._node("Shape", [before], ir.DataType.INT64, [1], {"start": axis, "end": axis + 1})

    def _node(self, op_type, inputs, dtype, shape, attributes=None) -> ir.Value:
        value = self._builder.node(op_type, inputs, dtype, shape, attributes)
        node = value.producer()
        assert node is not None
        node.name = f"{GATES}.{len(self._builder.graph)}"
        return value

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        found = self._builder.graph.initializers.get(f"{GATES}.{name}")
        return found if found is not None else self._builder.constant(f"{GATES}.{name}", array)

    def _whole(self, name: str, number: int) -> ir.Value:
        return self._constant(name, np.array(number, np.int64))

    def _real(self, name: str, numbers: Sequence[float]) -> ir.Value:
        return self._constant(name, np.array(numbers, np.float32))

    def _axes(self, *axes: int) -> ir.Value:
        return self._constant("axes." + ".".join(map(str, axes)), np.array(axes, np.int64))
