"""Parity of quantised graphs: PyTorch with the weights that the graph really holds.

A 4-bit decoder is another function than the checkpoint, by as much as its weights were rounded. That difference says
nothing about the adapter, and hides whether the adapter is right. So the checkpoint's own modules run with the graph's
dequantised weights, and the two must agree as closely as unquantised ones do: layer, sign, bias, padding and gate of
every op show. Products that the graph would compute with activations rounded to 8 bits (``accuracy_level`` 4) are
compared in full precision, on a copy of the small graph file; how far the graph that ships is from the checkpoint is
measured beside it, as drift.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir
import torch
from onnx_ir.external_data import set_base_dir
from torch import nn

from ...adapters.artifact.manifest import GraphWeights
from ...toolkit.model.offload import hold
from ..base.matrices import QUANTISED
from ..base.reading import read_graph
from ..foreign.weights import DecoderWeights, find_weights
from ..manifest import Graph
from ..runtime.onnx_vlm import OnnxVLM

if TYPE_CHECKING:
    from ...toolkit.index.caption_index import CaptionIndex
    from ...toolkit.model.vlm import VLM

_OTHERS: tuple[Graph, ...] = ("vision_encoder", "embed_tokens")
_FULL_PRECISION = 1  # of MatMulNBits' accuracy levels: float32 products


@dataclass(frozen=True)
class ComparedWeights:
    """With which weights PyTorch is compared with an export.

    Attributes:
        held: what it is to hold instead of its own; None for graphs that hold the checkpoint's.
        exact: whether the two compute the same function; otherwise only drift can be measured.
    """

    held: DecoderWeights | None = None
    exact: bool = True

    @classmethod
    def of(cls, vlm: VLM, export: OnnxVLM) -> ComparedWeights:
        """Those with which ``vlm`` and an export can be compared as closely as unquantised ones are."""
        if export.manifest.precision not in ("int4", "int8"):
            return cls()
        weights = held_weights(vlm, _graph(export, "decoder"), set(export.manifest.updates))
        others = [] if export.manifest.foreign is None else [_graph(export, name) for name in _OTHERS]
        if weights is None or any(_kinds(one) & set(QUANTISED) for one in others):
            return cls(exact=False)
        return cls(weights)

    @contextmanager
    def standing(self, vlm: VLM, on: GraphWeights | None = None) -> Iterator[None]:
        """Run ``vlm`` with these weights until the block ends; ``on`` is what adapters call them."""
        if self.held is None:
            yield
            return
        with holding(vlm, self.held, on):
            yield

    def computing_exactly(
        self, export: OnnxVLM, base: OnnxVLM | None, index: CaptionIndex | Path | None
    ) -> tuple[OnnxVLM, OnnxVLM | None]:
        """An export and its base as they are compared: in full precision, if they are other graphs."""
        if self.held is None:
            return export, base
        copies = [_in_full_precision(one, index) if one is not None else None for one in (export, base)]
        assert copies[0] is not None
        return copies[0], copies[1]


def _graph(export: OnnxVLM, name: Graph) -> ir.Model:
    return read_graph(export.path / export.manifest.graph_file(name))


def _kinds(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph}


def held_weights(vlm: VLM, model: ir.Model, updated: Collection[str] = ()) -> DecoderWeights | None:
    """The decoder weights that a graph holds; None where full precision cannot be had, or one was not found.

    Args:
        updated: names of weights that adapters in the graph change.
    """
    if _kinds(model) & (set(QUANTISED) - {"MatMulNBits"}):
        return None
    weights = find_weights(vlm, model)
    return None if set(weights.unread) - set(updated) else weights


@contextmanager
def holding(vlm: VLM, weights: DecoderWeights, on: GraphWeights | None = None) -> Iterator[None]:
    """Run ``vlm`` with the weights that a graph holds until the block ends; then the very same old tensors are back.

    Args:
        on: which weights these are, for adapters that were fitted on them.
    """
    before, vlm.on = vlm.on, on or vlm.on
    with ExitStack() as stack:
        stack.callback(setattr, vlm, "on", before)
        for item in weights.found:
            module = vlm.model.get_submodule(item.parameter.removesuffix(".weight"))
            old = module.weight
            values = torch.from_numpy(item.rows(range(old.shape[0])).values.copy()).to(vlm.dtype)
            hold(stack, module, {"weight": values})
            stack.callback(setattr, module, "weight", old)
            place = "cpu" if old.device.type == "meta" else old.device
            module.weight = nn.Parameter(values.to(place), requires_grad=False)
        yield


def _in_full_precision(onnx_vlm: OnnxVLM, index: CaptionIndex | Path | None) -> OnnxVLM:
    """A copy whose products read unrounded activations; it shares the weights."""
    model = _load(onnx_vlm)
    for graph in model.graphs():
        for node in graph:
            if node.op_type == "MatMulNBits":
                node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", _FULL_PRECISION)
    data = ir.serde.serialize_model(model).SerializeToString()
    return onnx_vlm.with_decoder(data, index=index)


def _load(onnx_vlm: OnnxVLM) -> ir.Model:
    source = onnx_vlm.decoder_source
    if not isinstance(source, bytes):
        return read_graph(source)
    model = ir.from_proto(onnx.ModelProto.FromString(source))
    set_base_dir(model.graph, onnx_vlm.path)
    return model
