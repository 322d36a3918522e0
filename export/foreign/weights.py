"""A decoder's weights against the checkpoint's.

Names vary, so a parameter is looked for by place and value: among the products of its layer's branch, where several may
be packed into one matrix along its outputs. A parameter that is found must be the checkpoint's:

- a float matrix is equal to it, up to one rounding to its own type;
- a quantised one holds the *nearest code* of every value: |w − ŵ| ≤ step / 2, save where the code is the first or the
  last. Another model's weights, even a fine-tuned sibling's whose changes are a small share of a step, miss the nearest
  code somewhere. Quantisers that make up for their own errors (GPTQ) miss it too, and cannot be told from a sibling.

Half of the parameters at least must be found: exporters may fold norms and scales into some, or reorder their rows, but
not into most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from ...adapters.errors import WrongBase
from ..base.matrices import Dequantised, Matrix, locate, matrix_of, spread
from ..manifest import WeightsInfo
from ..surgery.residual import ResidualStream, ancestors

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM

_LOOK = 64  # rows of a parameter that are compared
_ADVICE = "Pass the decoder that was exported from this checkpoint."
_CODES_ADVICE = (
    "Pass the decoder that was exported from this checkpoint; one whose quantiser makes up for its own errors (GPTQ) "
    "can be accepted with --allow-wrong-base."
)


@dataclass(frozen=True)
class Found:
    """Where a parameter lies in a graph.

    Attributes:
        parameter: its name in the checkpoint.
        matrix: which holds it.
        first: its first row there.
    """

    parameter: str
    matrix: Matrix
    first: int

    def rows(self, wanted: Sequence[int] | np.ndarray) -> Dequantised:
        """Some of its rows."""
        return self.matrix.rows(np.asarray(wanted) + self.first)


@dataclass(frozen=True)
class DecoderWeights:
    """The linear layers of a decoder that were found in a graph, and the names of those that were not."""

    found: tuple[Found, ...]
    unread: tuple[str, ...]

    @property
    def quantised(self) -> bool:
        """Whether some are held as codes."""
        return any(item.matrix.bits for item in self.found)


def find_weights(vlm: VLM, model: ir.Model, stream: ResidualStream | None = None) -> DecoderWeights:
    """Look for the weights of every linear layer of the decoder blocks and the head.

    Args:
        stream: where each layer's nodes are; without it, as in an adapted graph, each layer is looked for everywhere.
    """
    found: list[Found] = []
    unread: list[str] = []
    known: dict[ir.Node, Matrix | None] = {}
    for layers, nodes in _places(vlm, model, stream):
        known |= {node: matrix_of(node) for node in nodes if node not in known}
        matrices = [matrix for node in nodes if (matrix := known[node]) is not None]
        for name, weight in layers.items():
            # Graphs compute layers in the checkpoint's order, so that the next is behind the last, or packed with it.
            at = matrices.index(found[-1].matrix) if found and found[-1].matrix in matrices else 0
            likeliest = matrices[at:] + matrices[:at]
            place = locate(likeliest, tuple(weight.shape), lambda rows, weight=weight: _numpy(weight[rows]))
            if place is None:
                unread.append(name)
            else:
                found.append(Found(name, *place))
    return DecoderWeights(tuple(found), tuple(unread))


def require_same_weights(vlm: VLM, model: ir.Model, weights: DecoderWeights) -> WeightsInfo:
    """Compare what was found with the checkpoint.

    Raises:
        WrongBase: too little was found, or a parameter is not the checkpoint's; the first is named.
    """
    total = len(weights.found) + len(weights.unread)
    if 2 * len(weights.found) < total:
        raise WrongBase(
            f"Of {total} weights of the checkpoint's decoder, {len(weights.found)} were found in the base graph.",
            _ADVICE,
        )
    parameters = dict(vlm.model.named_parameters(remove_duplicate=False))
    exact = nearest = values = 0
    for item in weights.found:
        rows = spread(parameters[item.parameter].shape[0], _LOOK)
        ours, theirs = _numpy(parameters[item.parameter][rows]), item.rows(rows)
        values += ours.size
        _require_same(item, ours, theirs)
        exact, nearest = exact + (theirs.step is None), nearest + (theirs.step is not None)
    norms = _missing_norms(vlm, model)
    values += sum(norm.numel() for norm in _norms(vlm).values())
    exact += len(_norms(vlm)) - len(norms)
    return WeightsInfo(exact=exact, nearest=nearest, unread=(*weights.unread, *norms), values=values)


def _places(
    vlm: VLM, model: ir.Model, stream: ResidualStream | None
) -> Iterator[tuple[Mapping[str, torch.Tensor], list[ir.Node]]]:
    """Linear layers of the checkpoint, and the nodes among which each of them must be."""
    names = {module: name for name, module in vlm.model.named_modules()}
    order = {node: at for at, node in enumerate(model.graph)}
    head = {f"{names[vlm.parts.head]}.weight": vlm.parts.head.weight}
    for index, layer in enumerate(vlm.parts.layers):
        linear = {f"{names[one]}.weight": one.weight for one in layer.modules() if isinstance(one, nn.Linear)}
        if stream is None:
            yield linear, list(order)
            continue
        attention, mlp = stream.steps[2 * index : 2 * index + 2]
        nodes = {
            value.producer() for step in (attention, mlp) for value in ancestors(step.operand(step.branch), step.source)
        }
        yield linear, sorted((node for node in nodes if node is not None), key=order.__getitem__)
    if stream is None:
        yield head, list(order)
    elif stream.final_norm is not None:
        yield head, _behind(stream.final_norm)


def _behind(value: ir.Value) -> list[ir.Node]:
    """What reads a value, also once it was quantised or cast."""
    found = []
    for node, _ in value.uses():
        found.append(node)
        if node.op_type in ("DynamicQuantizeLinear", "Cast"):
            found += _behind(node.outputs[0])
    return found


def _require_same(item: Found, ours: np.ndarray, theirs: Dequantised) -> None:
    error = np.abs(ours - theirs.values)
    if theirs.step is None or theirs.clipped is None:
        unit = np.finfo(item.matrix.dtype).eps if item.matrix.dtype.kind == "f" else 2.0**-8
        tiny = np.finfo(np.float16).tiny if item.matrix.dtype == np.float16 else 1e-12
        off = error > unit * np.abs(ours) + tiny
        what, advice = f"differs in {off.mean():.1%} of its values, by up to {error.max():.2g}", _ADVICE
    else:
        slack = 8 * 2.0**-10 if item.matrix.dtype == np.float16 else 1e-3
        off = (error > (0.5 + slack) * theirs.step + 1e-7) & ~theirs.clipped
        what, advice = f"holds another than the nearest code for {off.mean():.1%} of its values", _CODES_ADVICE
    if off.any():
        raise WrongBase(f"{item.parameter} of the base graph is not the checkpoint's: it {what}.", advice)


def _norms(vlm: VLM) -> dict[str, torch.Tensor]:
    """Weights of the norms of decoder blocks and of the final norm."""
    names = {module: name for name, module in vlm.model.named_modules()}
    modules = [one for layer in vlm.parts.layers for one in layer.modules()]
    modules += [vlm.parts.final_norm] if vlm.parts.final_norm is not None else []
    return {
        f"{names[one]}.weight": one.weight
        for one in modules
        if "norm" in type(one).__name__.lower() and isinstance(getattr(one, "weight", None), nn.Parameter)
    }


def _missing_norms(vlm: VLM, model: ir.Model) -> list[str]:
    """Norms whose weights are nowhere in the graph, neither as they are nor, as some models apply them, plus one.

    Raises:
        WrongBase: the graph has a vector for every norm, so that they are not folded, but some are others.
    """
    vectors: dict[int, list[np.ndarray]] = {}
    for value in _constants(model.graph):
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) == 1 and tensor.dtype.is_floating_point():
            vectors.setdefault(tensor.shape.numpy()[0], []).append(tensor.numpy())
    missing = []
    norms = _norms(vlm)
    for name, weight in norms.items():
        candidates = vectors.get(weight.shape[0], [])
        if not any(_same_vector(weight, vector) for vector in candidates):
            missing.append(name)
    if missing and len(missing) < len(norms):
        raise WrongBase(
            f"{missing[0]} and {len(missing) - 1} more norms of the checkpoint are not in the base graph.", _ADVICE
        )
    return missing


def _same_vector(weight: torch.Tensor, vector: np.ndarray) -> bool:
    ours, theirs = _numpy(weight), vector.astype(np.float32)
    unit = np.finfo(vector.dtype).eps if vector.dtype.kind == "f" else 2.0**-8
    return any((np.abs(one - theirs) <= unit * np.abs(one) + 1e-7).all() for one in (ours, ours + 1))


def _constants(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.initializers.values()
    for node in graph:
        if node.op_type == "Constant":
            yield node.outputs[0]


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()
