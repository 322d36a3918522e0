"""Small changes to finished graphs that other runtimes need; weights are never touched.

**Mask channel.** Ops of scope ``vision`` or ``text`` need to know which tokens are a picture's, but runtimes other than
ours feed a decoder nothing but embeddings. So embeddings and image features get one more channel: 1 at image tokens,
0 elsewhere. A runtime that puts features into embeddings carries it along unseen; the decoder cuts it off again and
reads from it what ``vision_mask`` says. A runtime that does not carry it feeds the wrong width and fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import TopologicalSortPass

from ...adapters.errors import UnsupportedGraph
from ..manifest import GRAPHS, Graph
from ..names import IMAGE_FEATURES, INPUT_IDS, INPUTS_EMBEDS, own
from ..surgery.building import GraphBuilder

_EMBEDS, _FEATURES, _IDS = INPUTS_EMBEDS, IMAGE_FEATURES, INPUT_IDS


def add_mask_channel(models: Mapping[Graph, ir.Model], image_token_id: int, *inputs: str) -> bool:
    """Replace inputs of the decoder that are 1 at image tokens by a channel of its embeddings, in place.

    Args:
        inputs: their names, such as ``vision_mask``; bool or int64, [batch, sequence].

    Returns:
        Whether there was such an input; if not, nothing is changed.

    Raises:
        UnsupportedGraph: a graph lacks the values that carry the channel.
    """
    masks = [value for value in models["decoder"].graph.inputs if value.name in inputs]
    if not masks:
        return False
    _widen_features(models["vision_encoder"])
    _widen_embeddings(models["embed_tokens"], image_token_id)
    _read_channel(models["decoder"], masks)
    for name in GRAPHS:
        TopologicalSortPass()(models[name])
    return True


def _widen_features(model: ir.Model) -> None:
    builder, features = GraphBuilder(model), _output(model, _FEATURES)
    shape = _shape(features)
    pads = np.zeros(2 * len(shape), np.int64)
    pads[-1] = 1  # one more at the end of the last axis
    one = builder.constant(own("mask.one"), np.ones((), _numpy(features)))
    arguments = [features, builder.constant(own("mask.pads"), pads), one]
    wide = builder.node("Pad", arguments, features.dtype, _wider(shape))
    _replace_output(model, features, wide, "mask")


def _widen_embeddings(model: ir.Model, image_token_id: int) -> None:
    builder, embeds = GraphBuilder(model), _output(model, _EMBEDS)
    ids = next((value for value in model.graph.inputs if value.name == _IDS), None)
    if ids is None or ids.shape is None or ids.dtype is None:
        raise UnsupportedGraph(f"The token embedding has no input `{_IDS}`.", "Export the base graphs again.")
    token = builder.constant(own("mask.token"), np.array(image_token_id, ids.dtype.numpy()))
    found = builder.node("Equal", [ids, token], ir.DataType.BOOL, ids.shape)
    assert embeds.dtype is not None
    number = builder.node("Cast", [found], embeds.dtype, ids.shape, {"to": embeds.dtype.value})
    axis = builder.constant(own("mask.axis"), np.array([-1], np.int64))
    channel = builder.node("Unsqueeze", [number, axis], embeds.dtype, [*ids.shape, 1])
    wide = builder.node("Concat", [embeds, channel], embeds.dtype, _wider(_shape(embeds)), {"axis": -1})
    _replace_output(model, embeds, wide, "mask")


def _read_channel(model: ir.Model, masks: Sequence[ir.Value]) -> None:
    builder = GraphBuilder(model)
    embeds = next((value for value in model.graph.inputs if value.name == _EMBEDS), None)
    if embeds is None:
        raise UnsupportedGraph(f"The decoder has no input `{_EMBEDS}`.", "Export the base graphs again.")
    shape = _shape(embeds)
    wide = ir.val(_EMBEDS, embeds.dtype, _wider(shape))
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
        _replace_input(builder, mask, found)


def number_phases(model: ir.Model, name: str) -> None:
    """Replace an int64 input [batch, sequence] by 0 in a call without a past and 1 in all others, in place."""
    old = next((value for value in model.graph.inputs if value.name == name), None)
    if old is None:
        return
    builder = GraphBuilder(model)
    embeds = next(value for value in model.graph.inputs if value.name == _EMBEDS)
    nothing = builder.constant(own("phase.nothing"), np.array(0, np.int64))
    later = builder.node("Greater", [builder.past_length(), nothing], ir.DataType.BOOL, [])
    size = builder.node("Shape", [embeds], ir.DataType.INT64, [2], {"start": 0, "end": 2})
    _replace_input(builder, old, builder.node("Expand", [later, size], ir.DataType.BOOL, _shape(embeds)[:-1]))
    TopologicalSortPass()(model)


def _replace_input(builder: GraphBuilder, old: ir.Value, flags: ir.Value) -> None:
    assert old.dtype is not None
    if old.dtype != ir.DataType.BOOL:
        flags = builder.node("Cast", [flags], old.dtype, flags.shape, {"to": old.dtype.value})
    old.replace_all_uses_with(flags)
    builder.graph.inputs.remove(old)


def rename_axis(model: ir.Model, old: str, new: str) -> None:
    """Give a symbolic axis of all inputs and outputs, and of the values between, another name."""
    values = [*model.graph.inputs, *model.graph.outputs]
    values += [value for node in model.graph for value in node.outputs]
    for value in values:
        if value.shape is not None and any(_symbol(size) == old for size in value.shape):
            value.shape = ir.Shape([new if _symbol(size) == old else size for size in value.shape])


def flatten_features(model: ir.Model) -> ir.Value:
    """Let a vision encoder give ``image_features`` as [image_tokens, d], picture after picture, in place.

    Raises:
        UnsupportedGraph: the graph has no image features.
    """
    features = _output(model, _FEATURES)
    shape = _shape(features)
    if len(shape) == 2:
        return features
    builder = GraphBuilder(model)
    flat = builder.constant(own("flat"), np.array([-1, shape[-1]], np.int64))
    rows = builder.node("Reshape", [features, flat], features.dtype, ["image_tokens", shape[-1]])
    _replace_output(model, features, rows, "flat")
    TopologicalSortPass()(model)
    return rows


def merge_features(model: ir.Model, image_token_id: int, features: ir.Value) -> None:
    """Let the token embedding put ``features`` at the image tokens itself, in place.

    Args:
        features: the new graph input, [image_tokens, d], in the order of the image tokens. There must be as many as
            image tokens, or none at all, which leaves the tokens' own embeddings; else the graph fails.

    Raises:
        UnsupportedGraph: the graph has no embeddings or no token ids.
    """
    builder, embeds = GraphBuilder(model), _output(model, _EMBEDS)
    ids = next((value for value in model.graph.inputs if value.name == _IDS), None)
    if ids is None or ids.dtype is None:
        raise UnsupportedGraph(f"The token embedding has no input `{_IDS}`.", "Export the base graphs again.")
    model.graph.inputs.append(features)
    token = builder.constant(own("merge.token"), np.array(image_token_id, ids.dtype.numpy()))
    found = builder.node("Equal", [ids, token], ir.DataType.BOOL, ids.shape)
    places = builder.node("NonZero", [found], ir.DataType.INT64, [2, "image_tokens"])
    indices = builder.node("Transpose", [places], ir.DataType.INT64, ["image_tokens", 2], {"perm": [1, 0]})
    zero, one = (builder.constant(own(f"merge.{number}"), np.array([number], np.int64)) for number in (0, 1))
    everything = builder.constant(own("merge.all"), np.array([np.iinfo(np.int64).max], np.int64))
    given = builder.node("Shape", [features], ir.DataType.INT64, [1], {"start": 0, "end": 1})
    nothing = builder.node("Less", [given, one], ir.DataType.BOOL, [1])
    end = builder.node("Where", [nothing, zero, everything], ir.DataType.INT64, [1])
    indices = builder.node("Slice", [indices, zero, end, zero], ir.DataType.INT64, ["image_tokens", 2])
    merged = builder.node("ScatterND", [embeds, indices, features], embeds.dtype, embeds.shape)
    _replace_output(model, embeds, merged, "merge")
    TopologicalSortPass()(model)


def relocate(model: ir.Model, names: Mapping[str, str]) -> None:
    """Let weights that lie in other files be looked for under other names; the bytes are the same.

    Args:
        names: old name of a data file → new one, relative to where the graph will lie.

    Raises:
        UnsupportedGraph: a weight lies in a file that is not named.
    """
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        if tensor.location not in names:
            raise UnsupportedGraph(f"A weight lies in {tensor.location}, which is unknown.", "Export the model again.")
        assert tensor.shape is not None
        value.const_value = ir.ExternalTensor(
            names[str(tensor.location)],
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=tensor.shape,
            name=str(tensor.name),
            base_dir=tensor.base_dir,
        )


def _output(model: ir.Model, name: str) -> ir.Value:
    found = next((value for value in model.graph.outputs if value.name == name), None)
    if found is None:
        raise UnsupportedGraph(f"A graph has no output `{name}`.", "Export the base graphs again.")
    return found


def _replace_output(model: ir.Model, old: ir.Value, new: ir.Value, part: str) -> None:
    at = list(model.graph.outputs).index(old)
    old.name, new.name = own(f"{part}.{old.name}"), old.name
    model.graph.outputs[at] = new


def _shape(value: ir.Value) -> list[int | str]:
    if value.shape is None or not isinstance(value.shape[-1], int):
        raise UnsupportedGraph(f"The width of `{value.name}` is not stated.", "Export the base graphs again.")
    return [size if isinstance(size, int) else str(size) for size in value.shape]


def _wider(shape: list[int | str]) -> ir.Shape:
    last = shape[-1]
    assert isinstance(last, int)
    return ir.Shape([*shape[:-1], last + 1])


def _numpy(value: ir.Value) -> np.dtype:
    assert value.dtype is not None
    return value.dtype.numpy()


def _symbol(size: object) -> str | None:
    return size.value if isinstance(size, ir.SymbolicDim) else None
