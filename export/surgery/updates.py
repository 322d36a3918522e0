"""Weight updates in finished graphs: an initializer changes, no node is added.

Names of initializers vary between exporters and vanish under optimisation, so a parameter is found by its *value*: the
initializer that equals the base's weight, or its transpose where its consumer reads it so, cast to the graph's type.
It is replaced by ``safetykit.<parameter>`` with the new value, kept in the adapter's own data file; the base's weights
file stays as it is. No match, several, or a match that serves other layers too is refused.

A bias that a linear layer lacks costs no node either: ``Gemm`` and skip-norms have an input for it, and the residual
``Add(residual, branch)`` becomes ``Sum(residual, branch, bias)``. While ops are baked it stands as an addition of its
own, so that an op at the branch's output sees the bias; :func:`merge_biases` then merges those that no op reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch

from ...adapters.artifact.updates import WeightUpdate
from ...adapters.errors import UnsupportedGraph, UsageError
from ..base.matrices import QUANTISED, locate, matrix_of
from ..manifest import Graph
from ..names import BIAS, is_own, own
from ..passes import GraphPass, broken
from .residual import SKIP_NORMS, bias_input

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM


@dataclass(frozen=True)
class LayerUpdate:
    """What changes in one layer of the base.

    Attributes:
        layer: its name in the base model.
        graph: which graph computes it.
        old: its parameters as the base has them, float32; a bias may be missing.
        new: those that change, float32.
    """

    layer: str
    graph: Graph
    old: Mapping[str, np.ndarray]
    new: Mapping[str, np.ndarray]


def plan_updates(vlm: VLM, updates: Sequence[WeightUpdate]) -> tuple[LayerUpdate, ...]:
    """The net change of ``updates``, layer by layer; several of one parameter act in order.

    Raises:
        InvalidArtifact: a parameter does not exist or has another shape.
        UsageError: a weight is tied, or is computed in no graph that can be updated.
    """
    from ...toolkit.model.updates import find_changes

    layers: dict[str, LayerUpdate] = {}
    for change in find_changes(vlm.model, updates, vlm.weights, torch.float32):
        if change.layer not in layers:
            own = change.module.named_parameters(recurse=False)
            old = {name: _array(vlm.weights.of(value).whole()) for name, value in own}
            layers[change.layer] = LayerUpdate(change.layer, _graph_of(vlm, change.layer), old, {})
        found = layers[change.layer]
        layers[change.layer] = replace(found, new={**found.new, change.leaf: _array(change.new)})
    return tuple(layers.values())


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _graph_of(vlm: VLM, layer: str) -> Graph:
    module, parts = vlm.model.get_submodule(layer), vlm.parts
    if module is parts.embed_tokens:
        raise UsageError(f"{layer} is the token embedding, which is not updated in exports.", "Leave it out.")
    if any(module is one for part in (parts.tower, parts.projector) if part is not None for one in part.modules()):
        return "vision_encoder"
    if any(module is one for part in (*parts.layers, parts.final_norm, parts.head) for one in part.modules()):
        return "decoder"
    raise UsageError(
        f"{layer} lies in neither tower, projector, decoder blocks, final norm nor head.",
        "Updates of other parts are not exported.",
    )


def update_graph(model: ir.Model, graph: Graph, layers: Sequence[LayerUpdate]) -> ir.Model:
    """Give the layers that lie in ``graph`` their new weights, in place, and return ``model``.

    To be called before interventions are baked; :func:`merge_biases` follows after them.

    Raises:
        UsageError: nothing changes at the graph's precision, or a value overflows it.
        UnsupportedGraph: the graph is adapted already, or a parameter was not found for certain.
    """
    return UpdatePass(graph, layers).run(model)


class UpdatePass(GraphPass):
    """requires: the graph holds no adapter yet.
    ensures: every new weight is an initializer that a node reads; but for sums with biases no node was added, and none
    is gone.
    """

    def __init__(self, graph: Graph, layers: Sequence[LayerUpdate]) -> None:
        super().__init__()
        self.graph_name, self.layers = graph, tuple(layer for layer in layers if layer.graph == graph)
        self._before: set[ir.Node] = set()

    def requires(self, model: ir.Model) -> None:
        if taken := [name for name in model.graph.initializers if is_own(name)]:
            raise UnsupportedGraph(
                f"The graph already holds a safetykit adapter (`{taken[0]}`).",
                "Start from the base graph and give all adapters at once: --adapter A --adapter B.",
            )
        self._before = set(model.graph)

    def change(self, model: ir.Model) -> None:
        moved = [_update_layer(model.graph, layer) for layer in self.layers]
        if self.layers and not any(moved):
            raise UsageError(
                f"The weight updates change nothing in the {self.graph_name} graph at its precision.",
                "Fit the adapter again, or export in fp32.",
            )

    def ensures(self, model: ir.Model) -> None:
        now = set(model.graph)
        if lost := self._before - now:
            raise broken(f"{len(lost)} nodes are gone after weights were updated")
        if strange := [node for node in now - self._before if not (node.name or "").startswith(f"{BIAS}.")]:
            raise broken(f"Updating weights has added {strange[0].op_type} {strange[0].name!r}")
        for layer in self.layers:
            for leaf in layer.new:
                value = model.graph.initializers.get(own(f"{layer.layer}.{leaf}"))
                if value is None or not value.uses():
                    raise broken(f"No node reads the new {layer.layer}.{leaf}")


def _update_layer(graph: ir.Graph, layer: LayerUpdate) -> bool:
    """Whether some value moved."""
    moved = False
    for name in sorted(layer.new, reverse=True):  # weight before bias: where a layer's bias lies shows at its weight
        parameter = f"{layer.layer}.{name}"
        if name == "bias" and "weight" in layer.old:
            moved |= _update_bias(graph, layer, parameter)
            continue
        place = _find(graph, layer.old[name], parameter)
        moved |= place.put(graph, parameter, layer.new[name])
    return moved


@dataclass(frozen=True)
class _Place:
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
        value = _initializer(graph, own(f"{parameter}"), after, before.dtype, parameter)
        self.node.replace_input_with(self.index, value)
        if not old.uses() and not old.is_graph_input():
            graph.initializers.pop(old.name)
        assert value.const_value is not None
        return not np.array_equal(before, value.const_value.numpy())


def _initializer(graph: ir.Graph, name: str, array: np.ndarray, dtype: np.dtype, parameter: str) -> ir.Value:
    with np.errstate(over="ignore"):
        cast = np.array(array.astype(dtype), order="C")
    if not np.isfinite(cast.astype(np.float32)).all():
        raise UsageError(f"The new {parameter} overflows {cast.dtype}.", "Export in fp32.")
    tensor = ir.tensor(cast, name=name)
    value = ir.val(name, tensor.dtype, tensor.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _find(graph: ir.Graph, old: np.ndarray, parameter: str) -> _Place:
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


def _places(graph: ir.Graph, old: np.ndarray) -> list[_Place]:
    """Where a value is read as a float initializer."""
    places = []
    for value in graph.initializers.values():
        tensor = value.const_value
        # Sizes first: the values of external tensors are read from disk.
        if tensor is None or tensor.size != old.size or not value.dtype or not value.dtype.is_floating_point():
            continue
        for node, index in value.uses():
            transposed = reads_transposed(node, index) and old.ndim == 2
            if _same(tensor, old.T if transposed else old):
                places.append(_Place(node, index, transposed))
    return places


def reads_transposed(node: ir.Node, index: int) -> bool:
    """Whether a linear layer's weight [out, in] is expected as [in, out] at this input."""
    if node.op_type == "Gemm":
        return index == 1 and not (node.attributes["transB"].as_int() if "transB" in node.attributes else 0)
    return node.op_type == "MatMul" and index == 1


def _same(tensor: ir.TensorProtocol, old: np.ndarray) -> bool:
    if tuple(tensor.shape.numpy()) != old.shape:
        return False
    values = tensor.numpy()
    # The first row decides in nearly every case, so that the rest of a large file is not read.
    with np.errstate(over="ignore"):
        first = np.array_equal(values[:1], old[:1].astype(values.dtype))
        return first and np.array_equal(values, old.astype(values.dtype))


def _update_bias(graph: ir.Graph, layer: LayerUpdate, parameter: str) -> bool:
    found = find_product(graph, layer, parameter)
    if found.outputs is not None:
        raise UnsupportedGraph(
            f"The layer of {parameter} is packed with others.", "Use --mode bake, or base graphs exported by safetykit."
        )
    product, dtype = found.node, found.dtype
    old, new = layer.old.get("bias"), layer.new["bias"]
    place = _bias_place(product)
    if old is None:
        if place is not None:
            raise UnsupportedGraph(
                f"The graph adds a constant where the base has no {parameter}.",
                "Use --mode bake, or base graphs exported by safetykit.",
            )
        return _add_bias(graph, product, _initializer(graph, own(f"{parameter}"), new, dtype, parameter))
    if place is not None:
        held = place.node.inputs[place.index]
        assert held is not None and held.const_value is not None
        if _same(held.const_value, old):
            return place.put(graph, parameter, new)
    raise UnsupportedGraph(
        f"{parameter} was not found beside its weight.", "Use --mode bake, or base graphs exported by safetykit."
    )


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
        place = _find(graph, layer.old["weight"], f"{layer.layer}.weight")
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


def _bias_place(product: ir.Node) -> _Place | None:
    """Where the constant that is added to a product is read; None when none is."""
    if product.op_type not in ("MatMul", "MatMulNBits"):
        held = product.inputs[2] if len(product.inputs) > 2 else None
        return _Place(product, 2, False) if held is not None and held.is_initializer() else None
    uses = list(product.outputs[0].uses())
    if len(uses) != 1:
        return None
    node, index = uses[0]
    if node.op_type in SKIP_NORMS:
        at = bias_input(node)
        held = node.inputs[at] if len(node.inputs) > at else None
        return _Place(node, at, False) if held is not None and held.is_initializer() else None
    if node.op_type == "Add" and (other := node.inputs[1 - index]) is not None and other.is_initializer():
        return _Place(node, 1 - index, False)
    return None


def _add_bias(graph: ir.Graph, product: ir.Node, bias: ir.Value) -> bool:
    """Add ``bias`` to a product that has none; whether it is other than zero."""
    output = product.outputs[0]
    assert bias.name is not None and bias.const_value is not None
    if product.op_type == "Gemm":
        product.resize_inputs(3)
        product.replace_input_with(2, bias)
    else:
        readers = list(output.uses())
        node = ir.node("Add", [output, bias], name=bias.name.replace(own(""), f"{BIAS}.", 1))
        graph.insert_after(product, node)
        total = node.outputs[0]
        total.name, total.dtype, total.shape = f"{bias.name}.sum", bias.dtype, output.shape
        for reader, index in readers:
            reader.replace_input_with(index, total)
        for index, one in enumerate(graph.outputs):
            if one is output:
                graph.outputs[index] = total
                total.name, output.name = output.name, f"{output.name}.unadapted"
    return bool(bias.const_value.numpy().any())


def merge_biases(model: ir.Model) -> ir.Model:
    """Merge the biases :func:`update_graph` added into the residual additions that alone read them.

    A bias whose sum an op or another node reads too keeps its own node.
    """
    return MergeBiasesPass().run(model)


class MergeBiasesPass(GraphPass):
    """requires: nothing; a graph without such additions stays as it is.
    ensures: every bias that was added is still read, once.
    """

    def __init__(self) -> None:
        super().__init__()
        self._biases: list[ir.Value | None] = []

    def requires(self, model: ir.Model) -> None:
        self._biases = [node.inputs[1] for node in model.graph if (node.name or "").startswith(f"{BIAS}.")]

    def change(self, model: ir.Model) -> None:
        graph = model.graph
        for node in [node for node in graph if (node.name or "").startswith(f"{BIAS}.")]:
            product, bias = node.inputs
            uses = list(node.outputs[0].uses())
            if len(uses) != 1 or node.outputs[0].is_graph_output() or product is None or bias is None:
                continue
            reader, index = uses[0]
            if reader.op_type in SKIP_NORMS and index < 2:
                at = bias_input(reader)
                if len(reader.inputs) <= at:
                    reader.resize_inputs(at + 1)
                if reader.inputs[at] is not None:
                    continue
                reader.replace_input_with(at, bias)
            elif reader.op_type == "Add" and reader.domain in ("", "ai.onnx"):
                reader.op_type = "Sum"
                reader.resize_inputs(3)
                reader.replace_input_with(2, bias)
            else:
                continue
            reader.replace_input_with(index, product)
            graph.remove(node, safe=True)

    def ensures(self, model: ir.Model) -> None:
        for bias in self._biases:
            if bias is None or len(bias.uses()) != 1:
                raise broken(f"The bias {bias and bias.name} is read {len(bias.uses()) if bias else 0} times")
