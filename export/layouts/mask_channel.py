"""The mask channel: where pictures are, told within the embeddings.

Ops of scope ``vision`` or ``text`` need to know which tokens are a picture's, but runtimes other than
ours feed a decoder nothing but embeddings. So embeddings and image features get one more channel: 1 at image tokens,
0 elsewhere. A runtime that puts features into embeddings carries it along unseen; the decoder cuts it off again and
reads from it what ``vision_mask`` says. A runtime that does not carry it feeds the wrong width and fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ..manifest import Graph
from ..names import IMAGE_FEATURES, INPUTS_EMBEDS, own
from ..passes import GraphPass, broken
from ..surgery.building import GraphBuilder
from .values import input_of, output_of, replace_input, replace_output, shape_of, token_ids_of


def add_mask_channel(models: Mapping[Graph, ir.Model], image_token_id: int, *inputs: str) -> bool:
    """Replace inputs of the decoder that are 1 at image tokens by a channel of its embeddings, in place.

    Args:
        inputs: their names, such as ``vision_mask``; bool or int64, [batch, sequence].

    Returns:
        Whether there was such an input; if not, nothing is changed.

    Raises:
        UnsupportedGraph: a graph lacks the values that carry the channel.
    """
    found = [str(value.name) for value in models["decoder"].graph.inputs if value.name in inputs]
    if not found:
        return False
    WidenFeaturesPass().run(models["vision_encoder"])
    WidenEmbeddingsPass(image_token_id).run(models["embed_tokens"])
    ReadChannelPass(found).run(models["decoder"])
    return True


class _WidenPass(GraphPass):
    """requires: the graph gives its output, of stated width. ensures: it is one channel wider, under the same name."""

    output: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self._shape: list[int | str] = []

    def requires(self, model: ir.Model) -> None:
        self._shape = shape_of(output_of(model, self.output))

    def ensures(self, model: ir.Model) -> None:
        if output_of(model, self.output).shape != _wider(self._shape):
            raise broken(f"The output `{self.output}` is not one channel wider")


class WidenFeaturesPass(_WidenPass):
    """Image features with a channel of ones."""

    output = IMAGE_FEATURES

    def change(self, model: ir.Model) -> None:
        _widen_features(model)


class WidenEmbeddingsPass(_WidenPass):
    """Embeddings with a channel that is 1 at image tokens; the graph must read token ids."""

    output = INPUTS_EMBEDS

    def __init__(self, image_token_id: int) -> None:
        super().__init__()
        self.image_token_id = image_token_id

    def requires(self, model: ir.Model) -> None:
        super().requires(model)
        token_ids_of(model)

    def change(self, model: ir.Model) -> None:
        _widen_embeddings(model, self.image_token_id)


class ReadChannelPass(GraphPass):
    """requires: the decoder reads embeddings of stated width, and the masks. ensures: no mask is an input any more, and
    the embeddings are one channel wider.
    """

    def __init__(self, masks: Sequence[str]) -> None:
        super().__init__()
        self.masks = tuple(masks)
        self._shape: list[int | str] = []

    def requires(self, model: ir.Model) -> None:
        self._shape = shape_of(input_of(model, INPUTS_EMBEDS, "decoder"))
        for name in self.masks:
            input_of(model, name, "decoder")

    def change(self, model: ir.Model) -> None:
        _read_channel(model, [input_of(model, name, "decoder") for name in self.masks])

    def ensures(self, model: ir.Model) -> None:
        left = {value.name: value for value in model.graph.inputs}
        if kept := [name for name in self.masks if name in left]:
            raise broken(f"The decoder still reads `{kept[0]}`")
        if left[INPUTS_EMBEDS].shape != _wider(self._shape):
            raise broken(f"The input `{INPUTS_EMBEDS}` is not one channel wider")


def _widen_features(model: ir.Model) -> None:
    builder, features = GraphBuilder(model), output_of(model, IMAGE_FEATURES)
    shape = shape_of(features)
    pads = np.zeros(2 * len(shape), np.int64)
    pads[-1] = 1  # one more at the end of the last axis
    one = builder.constant(own("mask.one"), np.ones((), _numpy(features)))
    arguments = [features, builder.constant(own("mask.pads"), pads), one]
    wide = builder.node("Pad", arguments, features.dtype, _wider(shape))
    replace_output(model, features, wide, "mask")


def _widen_embeddings(model: ir.Model, image_token_id: int) -> None:
    builder, embeds = GraphBuilder(model), output_of(model, INPUTS_EMBEDS)
    ids = token_ids_of(model)
    assert ids.shape is not None and ids.dtype is not None
    token = builder.constant(own("mask.token"), np.array(image_token_id, ids.dtype.numpy()))
    found = builder.node("Equal", [ids, token], ir.DataType.BOOL, ids.shape)
    assert embeds.dtype is not None
    number = builder.node("Cast", [found], embeds.dtype, ids.shape, {"to": embeds.dtype.value})
    axis = builder.constant(own("mask.axis"), np.array([-1], np.int64))
    channel = builder.node("Unsqueeze", [number, axis], embeds.dtype, [*ids.shape, 1])
    wide = builder.node("Concat", [embeds, channel], embeds.dtype, _wider(shape_of(embeds)), {"axis": -1})
    replace_output(model, embeds, wide, "mask")


def _read_channel(model: ir.Model, masks: Sequence[ir.Value]) -> None:
    builder = GraphBuilder(model)
    embeds = input_of(model, INPUTS_EMBEDS, "decoder")
    shape = shape_of(embeds)
    wide = ir.val(INPUTS_EMBEDS, embeds.dtype, _wider(shape))
    sizes = builder.constant(own("mask.sizes"), np.array([shape[-1], 1], np.int64))
    parts = ir.node("Split", [wide, sizes], {"axis": -1}, num_outputs=2, name=own("mask.split"))
    model.graph.append(parts)
    states, channel = parts.outputs
    states.name, states.dtype, states.shape = own("mask.embeds"), embeds.dtype, embeds.shape
    channel.name, channel.dtype, channel.shape = own("mask.channel"), embeds.dtype, ir.Shape([*shape[:-1], 1])
    half = builder.constant(own("mask.half"), np.array(0.5, _numpy(embeds)))
    flags = builder.node("Greater", [channel, half], ir.DataType.BOOL, channel.shape)
    axis = builder.constant(own("mask.axis"), np.array([-1], np.int64))
    found = builder.node("Squeeze", [flags, axis], ir.DataType.BOOL, shape[:-1])
    embeds.replace_all_uses_with(states)
    at = list(model.graph.inputs).index(embeds)
    model.graph.inputs[at] = wide
    for mask in masks:
        replace_input(builder, mask, found)


def _wider(shape: list[int | str]) -> ir.Shape:
    last = shape[-1]
    assert isinstance(last, int)
    return ir.Shape([*shape[:-1], last + 1])


def _numpy(value: ir.Value) -> np.dtype:
    assert value.dtype is not None
    return value.dtype.numpy()
