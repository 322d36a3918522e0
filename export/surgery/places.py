"""Where a graph reads a parameter of the base, found by its value: names vary between exporters.

The initializer that equals the base's weight, or its transpose where its consumer reads it so, cast to the graph's
type. No match, several, or a match that serves other layers too is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...adapters.errors import UnsupportedGraph, UsageError
from ..base.matrices import QUANTISED, locate, matrix_of
from ..names import own
from .layer_updates import LayerUpdate
from .residual import SKIP_NORMS, bias_input


@dataclass(frozen=True)
class Place:
    """Where an initializer is read, and how: ``transposed`` when the graph holds the base's weight transposed."""

    node: ir.Node
    index: int
    transposed: bool

    def put(self, graph: ir.Graph, parameter: str, new: np.ndarray) -> bool:
        """Have the node read ``new`` instead; the initializer leaves the graph when nothing else reads it."""
        old = self.node.inputs[self.index]
        assert old is not None and old.const_value is not None
        before = old.const_value.numpy()
        after = (new.T if self.transposed else new).reshape(before.shape)
        value = new_initializer(graph, own(f"{parameter}"), after, before.dtype, parameter)
        self.node.replace_input_with(self.index, value)
        if not old.uses() and not old.is_graph_input():
            graph.initializers.pop(old.name)
        assert value.const_value is not None
        return not np.array_equal(before, value.const_value.numpy())


def new_initializer(graph: ir.Graph, name: str, array: np.ndarray, dtype: np.dtype, parameter: str) -> ir.Value:
    """A new initializer of a graph, cast to its type.

    Raises:
        UsageError: a value overflows the type.
    """
    with np.errstate(over="ignore"):
        cast = np.array(array.astype(dtype), order="C")
    if not np.isfinite(cast.astype(np.float32)).all():
        raise UsageError(f"The new {parameter} overflows {cast.dtype}.", "Export in fp32.")
    tensor = ir.tensor(cast, name=name)
    value = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def find_place(graph: ir.Graph, old: np.ndarray, parameter: str) -> Place:
    """The one place where a parameter's value is read.

    Raises:
        UnsupportedGraph: it is read nowhere, or at several places.
    """
    places = _places(graph, old)
    if len(places) == 1:
        return places[0]
    if len(places) > 1:
        raise UnsupportedGraph(
            f"The value of {parameter} is read at {len(places)} places of the graph, so it is shared or not unique.",
            "Use --mode bake, which leaves weights as they are.",
        )
    if quantised := sorted({node.op_type for node in graph} & set(QUANTISED)):
        raise UnsupportedGraph(
            f"{parameter} is not in the graph as a float weight: its weights are quantised ({', '.join(quantised)}).",
            "Use --mode bake, or fold before quantising; only low-rank updates can stay beside quantised weights.",
        )
    raise UnsupportedGraph(
        f"No initializer of the graph is {parameter}: it may be packed with others, or of another model.",
        "Use --mode bake, or base graphs exported by safetykit.",
    )


def _places(graph: ir.Graph, old: np.ndarray) -> list[Place]:
    """Where a value is read as a float initializer."""
    places = []
    for value in graph.initializers.values():
        tensor = value.const_value
        # Sizes first: the values of external tensors are read from disk.
        if tensor is None or tensor.size != old.size or not value.dtype or not value.dtype.is_floating_point():
            continue
        for node, index in value.uses():
            transposed = reads_transposed(node, index) and old.ndim == 2
            if same_value(tensor, old.T if transposed else old):
                places.append(Place(node, index, transposed))
    return places


def reads_transposed(node: ir.Node, index: int) -> bool:
    """Whether a linear layer's weight [out, in] is expected as [in, out] at this input."""
    if node.op_type == "Gemm":
        return index == 1 and not (node.attributes["transB"].as_int() if "transB" in node.attributes else 0)
    return node.op_type == "MatMul" and index == 1


def same_value(tensor: ir.TensorProtocol, old: np.ndarray) -> bool:
    """Whether a tensor holds these values, cast to its type."""
    if tuple(tensor.shape.numpy()) != old.shape:
        return False
    values = tensor.numpy()
    # The first row decides in nearly every case, so that the rest of a large file is not read.
    with np.errstate(over="ignore"):
        first = np.array_equal(values[:1], old[:1].astype(values.dtype))
        return first and np.array_equal(values, old.astype(values.dtype))


@dataclass(frozen=True)
class Product:
    """The node that multiplies with a layer's weight.

    Attributes:
        dtype: of the float weight, or of what a quantised product gives.
        first: the layer's first output among those of the node, where several layers are packed into one.
        outputs: how many outputs the node has; None where that is the layer's own number.
    """

    node: ir.Node
    dtype: np.dtype
    first: int = 0
    outputs: int | None = None


def find_product(graph: ir.Graph, layer: LayerUpdate, parameter: str) -> Product:
    """The node that multiplies with the layer's weight, which may have been replaced already."""
    value = graph.initializers.get(own(f"{layer.layer}.weight"))
    if value is None:
        if not _places(graph, layer.old["weight"]) and (held := _held(graph, layer.old["weight"])):
            return held
        place = find_place(graph, layer.old["weight"], f"{layer.layer}.weight")
        value = place.node.inputs[place.index]
    assert value is not None and value.const_value is not None
    dtype = value.const_value.numpy().dtype
    (node, _), *_ = value.uses()
    while node.op_type == "Transpose" and len(node.outputs[0].uses()) == 1:
        (node, _), *_ = node.outputs[0].uses()
    if node.op_type not in ("MatMul", "Gemm", "Conv", "LayerNormalization"):
        raise UnsupportedGraph(f"The layer of {parameter} is computed by {node.op_type}.", "Use --mode bake.")
    return Product(node, dtype)


def mergeable(graph: ir.Graph, layer: LayerUpdate) -> bool:
    """Whether a layer's weight is a float initializer of its own, so that a new value can take its place."""
    return "weight" not in layer.new or bool(_places(graph, layer.old["weight"]))


def _held(graph: ir.Graph, old: np.ndarray) -> Product | None:
    """The product whose matrix holds a weight quantised, or packed with others."""
    if old.ndim != 2:
        return None
    found = locate(filter(None, map(matrix_of, graph)), old.shape, lambda rows: old[rows])
    if found is None:
        return None
    matrix, first = found
    dtype = matrix.node.outputs[0].dtype or matrix.node.inputs[0].dtype
    if dtype is None or not dtype.is_floating_point():
        return None
    outputs = None if matrix.shape[0] == old.shape[0] else matrix.shape[0]
    return Product(matrix.node, dtype.numpy(), first, outputs)


def bias_place(product: ir.Node) -> Place | None:
    """Where the constant that is added to a product is read; None when none is."""
    if product.op_type not in ("MatMul", "MatMulNBits"):
        held = product.inputs[2] if len(product.inputs) > 2 else None
        return Place(product, 2, False) if held is not None and held.is_initializer() else None
    uses = list(product.outputs[0].uses())
    if len(uses) != 1:
        return None
    node, index = uses[0]
    if node.op_type in SKIP_NORMS:
        at = bias_input(node)
        held = node.inputs[at] if len(node.inputs) > at else None
        return Place(node, at, False) if held is not None and held.is_initializer() else None
    if node.op_type == "Add" and (other := node.inputs[1 - index]) is not None and other.is_initializer():
        return Place(node, 1 - index, False)
    return None
