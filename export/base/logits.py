"""Logits of the last positions only: the LM head reads what will be asked for.

The input ``num_logits_to_keep`` (int64 scalar, 1 when it is not fed) says of how many positions, counted from the last,
a call gives logits; 0 asks for all. It is the name and the rule of transformers.js. A prompt of 1,000 tokens over a
vocabulary of 150,000 would otherwise give 600 MB of which 0.6 are read.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from ...adapters.errors import UnsupportedGraph
from ..names import KEPT, LOGITS
from ..passes import GraphPass, broken, interface_of

_SIZE = "kept"  # the symbolic size of what is kept
_SLICE = "last_positions"
_HEADS = ("MatMul", "Gemm", "MatMulNBits", "MatMulInteger")
_AFTER_HEAD = ("Cast", "Identity", "Add", "Mul", "Div", "Tanh", "Reshape")


def head_node(logits: ir.Value) -> ir.Node | None:
    """The matrix product that gives the logits; None when it was not recognised."""
    value: ir.Value | None = logits
    while value is not None and (node := value.producer()) is not None:
        if node.op_type in _HEADS:
            return node
        if node.op_type not in _AFTER_HEAD:
            return None
        value = next((v for v in node.inputs if v is not None and not is_constant(v)), None)
    return None


def is_constant(value: ir.Value) -> bool:
    """Whether a value is the same in every call."""
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def keep_last_logits(model: ir.Model) -> None:
    """Let the LM head of a fresh decoder read the last positions; a decoder whose head is not found stays as it is."""
    if _head_and_states(model) is not None:
        KeepLastLogitsPass().run(model)


def give_all_logits(model: ir.Model) -> None:
    """Undo :func:`keep_last_logits`; other graphs stay as they are."""
    if any(node.name == _SLICE for node in model.graph):
        AllLogitsPass().run(model)


class KeepLastLogitsPass(GraphPass):
    """requires: logits come from a matrix product over states [batch, sequence, d_model].
    ensures: one more input, ``num_logits_to_keep``, which has a default; the product reads a slice of what it read.
    """

    def requires(self, model: ir.Model) -> None:
        if _head_and_states(model) is None:
            raise UnsupportedGraph("No LM head over states of rank 3 is found.", "Leave the decoder as it is.")
        self.note_interface(model)
        self.note_checker(model)

    def change(self, model: ir.Model) -> None:
        graph, found = model.graph, _head_and_states(model)
        assert found is not None  # as required
        head, states, shape = found
        count = _initializer(graph, KEPT, np.array(1, np.int64))
        graph.inputs.append(count)
        start = ir.node("Neg", [count], name=f"{_SLICE}.start")
        starts = ir.node("Reshape", [start.outputs[0], _initializer(graph, f"{_SLICE}.one", np.array([1]))])
        starts.name = f"{_SLICE}.starts"
        # From −n to the end; for n = 0 that is from the first on.
        ends = _initializer(graph, f"{_SLICE}.end", np.array([np.iinfo(np.int64).max]))
        axes = _initializer(graph, f"{_SLICE}.axis", np.array([1]))
        kept = ir.node("Slice", [states, starts.outputs[0], ends, axes], name=_SLICE)
        for node, sizes in ((start, ()), (starts, (1,))):
            value = node.outputs[0]
            value.name, value.dtype, value.shape = node.name, ir.DataType.INT64, ir.Shape(sizes)
        kept.outputs[0].name, kept.outputs[0].type = f"{_SLICE}.states", states.type
        kept.outputs[0].shape = ir.Shape([shape[0], _SIZE, shape[2]])
        graph.insert_before(head, [start, starts, kept])
        head.replace_input_with(0, kept.outputs[0])
        _resize(kept.outputs[0], _SIZE)

    def ensures(self, model: ir.Model) -> None:
        self.ensure_checker(model, "logits of the last positions")
        inputs, outputs = self._interface
        if interface_of(model) != ((*inputs, KEPT), outputs):
            raise broken(f"Inputs and outputs are not those before and {KEPT}")


class AllLogitsPass(GraphPass):
    """requires: :class:`KeepLastLogitsPass` was run on the graph.
    ensures: the input is gone, and what read the slice reads what the slice read.
    """

    def requires(self, model: ir.Model) -> None:
        if KEPT not in interface_of(model)[0]:
            raise UnsupportedGraph(f"The graph has no input {KEPT}.", "It gives all logits as it is.")
        self.note_interface(model)
        self.note_checker(model)

    def change(self, model: ir.Model) -> None:
        graph = model.graph
        kept = next(node for node in graph if node.name == _SLICE)
        states = kept.inputs[0]
        assert states is not None and states.shape is not None  # as it was made
        readers = list(kept.outputs[0].uses())
        for node, at in readers:
            node.replace_input_with(at, states)
        _resize(states, states.shape[1], [node for node, _ in readers])
        for node in [node for node in graph if str(node.name).startswith(_SLICE)][::-1]:
            graph.remove(node, safe=True)
        graph.inputs.remove(graph.initializers[KEPT])
        for name in [name for name in graph.initializers if name == KEPT or name.startswith(f"{_SLICE}.")]:
            del graph.initializers[name]

    def ensures(self, model: ir.Model) -> None:
        self.ensure_checker(model, "all logits")
        inputs, outputs = self._interface
        if interface_of(model) != (tuple(name for name in inputs if name != KEPT), outputs):
            raise broken(f"Inputs and outputs are not those before without {KEPT}")


def _head_and_states(model: ir.Model) -> tuple[ir.Node, ir.Value, ir.Shape] | None:
    """The product that gives the logits, and the states that it reads with their shape."""
    logits = next((value for value in model.graph.outputs if value.name == LOGITS), None)
    head = head_node(logits) if logits is not None else None
    states = head.inputs[0] if head is not None else None
    if head is None or states is None or states.shape is None or len(states.shape) != 3:
        return None
    return head, states, ir.Shape(states.shape)


def _resize(value: ir.Value, size: int | ir.SymbolicDim | str, first: list[ir.Node] | None = None) -> None:
    """Set the number of positions of all that is computed from ``value``, by the nodes ``first`` if they are given."""
    pending = list(first) if first is not None else list(value.consumers())
    while pending:
        for output in pending.pop().outputs:
            if output.shape is not None and len(output.shape) == 3:
                output.shape = ir.Shape([output.shape[0], size, output.shape[2]])
            pending += output.consumers()


def _initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.val(name, tensor.dtype, array.shape, const_value=tensor)
    graph.register_initializer(value)
    return value
