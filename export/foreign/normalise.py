"""A foreign decoder's interface in our conventions; its weights and what it computes stay as they are.

1. The cache goes in as ``past_key_values.<i>.key|value`` and out as ``present.<i>.key|value``,
   [batch, heads, past_sequence, head_dim]; other spellings are renamed.
2. It takes ``inputs_embeds``: of a decoder with ``input_ids`` the token embedding is split off, because the embeddings
   of pictures must go in between.
3. Masks and positions are int64; a graph that wants another type gets a cast.
4. Outputs are the logits and the cache; an input that only chooses among outputs is fixed.
5. Sizes that vary have one name each: batch, sequence, past_sequence, total.

Anything else among the inputs is refused: what is fed to it would be a guess.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass, TopologicalSortPass

from ...adapters.errors import UnsupportedGraph, WrongBase
from ..names import ATTENTION_MASK, INPUT_IDS, INPUTS_EMBEDS, LOGITS, PAST, POSITION_IDS, PRESENT

_PLACE = r"(?:[._](key|value))?[._](\d+)(?:[._](?:self[._])?(key|value))?"
_PAST = re.compile(rf"(?:past|past_key_values|past_key_value){_PLACE}")
_PRESENT = re.compile(rf"(?:present|present_key_values|presents){_PLACE}")
_INTEGERS = (ir.DataType.INT64, ir.DataType.INT32)
_FIXED = {"num_logits_to_keep": 0, "logits_to_keep": 0}  # 0 keeps them all
_ADVICE = "Use a plain decoder export: embeddings, mask and cache in; logits and cache out."


@dataclass(frozen=True)
class DecoderShape:
    """What the checkpoint says a decoder must look like.

    Attributes:
        inputs: names beside ``inputs_embeds``, ``attention_mask`` and the cache that the model's family feeds.
    """

    n_layers: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    vocabulary: int
    inputs: Collection[str] = (POSITION_IDS,)


def normalise(model: ir.Model, shape: DecoderShape) -> tuple[str, ...]:
    """Change the interface in place; says what was changed.

    Raises:
        UnsupportedGraph: an input, an output or a layout of the cache is not understood.
        WrongBase: layers, width, heads or vocabulary are not the checkpoint's.
    """
    graph, changes = model.graph, []
    _state_constants(graph)
    if any(node.op_type == "Add" and node.outputs[0].shape is None for node in graph):
        ShapeInferencePass()(model)
    _remove_idle_casts(graph)
    renamed = _rename_cache(graph.inputs, _PAST, "past_key_values") + _rename_cache(graph.outputs, _PRESENT, "present")
    if renamed:
        changes.append(f"{renamed} cache inputs and outputs renamed")
    _require_cache(graph, shape)
    changes += _fix_inputs(graph)
    changes += _split_embedding(graph)
    _require_known(graph, shape)
    changes += _drop_outputs(graph)
    _name_sizes(graph, shape)
    changes += _cast_inputs(graph)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    return tuple(changes)


def _state_constants(graph: ir.Graph) -> None:
    """Shapes of constants as they are: some exporters state others, which makes shape inference fail."""
    for node in graph:
        if node.op_type == "Constant" and (value := node.attributes.get("value")) is not None:
            tensor = value.as_tensor()
            node.outputs[0].shape, node.outputs[0].dtype = tensor.shape, tensor.dtype


def _remove_idle_casts(graph: ir.Graph) -> None:
    """Casts to the type that is there already: they hide which value is the residual stream."""
    outputs = set(graph.outputs)
    for node in [node for node in graph if node.op_type in ("Cast", "Identity") and node.domain == ""]:
        source, result = node.inputs[0], node.outputs[0]
        idle = node.op_type == "Identity" or (source is not None and source.dtype == node.attributes["to"].as_int())
        if source is None or not idle or result in outputs:
            continue
        for reader, index in list(result.uses()):
            reader.replace_input_with(index, source)
        graph.remove(node, safe=True)


def _rename_cache(values: Collection[ir.Value], pattern: re.Pattern[str], prefix: str) -> int:
    count = 0
    for value in values:
        match = pattern.fullmatch(value.name or "")
        part = (match[1] or match[3]) if match else None
        if match and part:
            name = f"{prefix}.{match[2]}.{part}"
            count += name != value.name
            value.name = name
    return count


def _require_cache(graph: ir.Graph, shape: DecoderShape) -> None:
    wanted = {f"{layer}.{part}" for layer in range(shape.n_layers) for part in ("key", "value")}
    for what, values, prefix in (("inputs", graph.inputs, PAST), ("outputs", graph.outputs, PRESENT)):
        found = {str(value.name).removeprefix(prefix): value for value in values if str(value.name).startswith(prefix)}
        if not found:
            names = ", ".join(str(value.name) for value in values[:8])
            raise UnsupportedGraph(f"No KV cache was found among the {what} {names}, ….", _ADVICE)
        if set(found) != wanted:
            layers = len({name.split(".")[0] for name in found})
            raise WrongBase(
                f"The decoder has {layers} layers, the checkpoint {shape.n_layers}.",
                "Pass the decoder that was exported from this checkpoint.",
            )
        for name, value in found.items():
            sizes = list(value.shape) if value.shape is not None else []
            if len(sizes) != 4 or isinstance(sizes[2], int):
                raise UnsupportedGraph(
                    f"The cache {what[:-1]} {prefix}{name} has shape {value.shape}, not [batch, heads, past, width].",
                    "Export with a cache that grows, not one of fixed length or merged heads.",
                )
            known = ((sizes[1], shape.n_kv_heads, "heads"), (sizes[3], shape.head_dim, "wide heads"))
            for size, expected, unit in known:
                if isinstance(size, int) and size != expected:
                    raise WrongBase(
                        f"The decoder caches {size} {unit}, the checkpoint has {expected}.",
                        "Pass the decoder that was exported from this checkpoint.",
                    )


def _fix_inputs(graph: ir.Graph) -> list[str]:
    """Constants for inputs that choose which logits are given."""
    changes = []
    for value in [value for value in graph.inputs if value.name in _FIXED]:
        assert value.name is not None
        shape = [1 if not isinstance(size, int) else size for size in value.shape or []]
        dtype = (value.dtype or ir.DataType.INT64).numpy()
        constant = ir.node("Constant", [], {"value": ir.tensor(np.full(shape, _FIXED[value.name], dtype))})
        graph.insert_before(graph[0], constant)
        constant.outputs[0].name = f"{value.name}.fixed"
        for node, index in list(value.uses()):
            node.replace_input_with(index, constant.outputs[0])
        graph.inputs.remove(value)
        changes.append(f"{value.name} fixed at {_FIXED[value.name]}")
    return changes


def _split_embedding(graph: ir.Graph) -> list[str]:
    """Make ``inputs_embeds`` an input of a decoder that takes ``input_ids``."""
    ids = next((value for value in graph.inputs if value.name == INPUT_IDS), None)
    if ids is None:
        return []
    if any(value.name == INPUTS_EMBEDS for value in graph.inputs):
        raise UnsupportedGraph("The decoder takes both input_ids and inputs_embeds.", _ADVICE)
    gathers, shapes = [], []
    pending = [ids]
    while pending:
        value = pending.pop()
        for node, index in value.uses():
            if node.op_type in ("Cast", "Identity"):
                pending.append(node.outputs[0])
            elif node.op_type in ("Gather", "GatherBlockQuantized") and index == 1:
                gathers.append(node)
            elif node.op_type == "Shape":
                shapes.append(node)
            else:
                raise UnsupportedGraph(
                    f"input_ids are read by {node.op_type}, not by the token embedding alone.",
                    "Build the decoder with embeddings as its input (exclude_embeds=true).",
                )
    if len(gathers) != 1:
        raise UnsupportedGraph(f"input_ids are looked up {len(gathers)} times.", _ADVICE)
    (gather,) = gathers
    old = gather.outputs[0]
    dtype = old.dtype or gather.inputs[0].dtype
    if dtype is None or not dtype.is_floating_point():
        raise UnsupportedGraph("The type of the token embedding is not known.", _ADVICE)
    embeds = ir.val(INPUTS_EMBEDS, dtype, old.shape)
    for node, index in list(old.uses()):
        node.replace_input_with(index, embeds)
    for node in shapes:  # the shape of two sizes that it was
        node.replace_input_with(0, embeds)
        end = node.attributes.get("end")
        if end is None or end.as_int() < 0 or end.as_int() > 2:
            node.attributes["end"] = ir.AttrInt64("end", 2 + min(end.as_int(), 0) if end is not None else 2)
        start = node.attributes.get("start")
        if start is not None and start.as_int() < 0:
            node.attributes["start"] = ir.AttrInt64("start", 2 + start.as_int())
    graph.inputs[list(graph.inputs).index(ids)] = embeds
    return ["token embedding split off: input_ids became inputs_embeds"]


def _require_known(graph: ir.Graph, shape: DecoderShape) -> None:
    names = {str(value.name) for value in graph.inputs if not str(value.name).startswith(PAST)}
    if missing := {INPUTS_EMBEDS, ATTENTION_MASK} - names:
        raise UnsupportedGraph(
            f"The decoder has no input {sorted(missing)[0]}, only {', '.join(sorted(names))}.", _ADVICE
        )
    if other := names - {INPUTS_EMBEDS, ATTENTION_MASK, *shape.inputs}:
        raise UnsupportedGraph(
            f"The decoder takes {', '.join(sorted(other))}, which safetykit does not know how to feed.", _ADVICE
        )
    values = {str(value.name): value for value in (*graph.inputs, *graph.outputs)}
    if LOGITS not in values:
        found = ", ".join(str(value.name) for value in graph.outputs[:4])
        raise UnsupportedGraph(f"The decoder has no output `logits` but {found}.", _ADVICE)
    mask = values[ATTENTION_MASK]
    if mask.shape is None or len(mask.shape) != 2 or mask.dtype not in _INTEGERS:
        raise UnsupportedGraph(
            f"attention_mask is {mask.dtype} {mask.shape}, not [batch, total] of integers.",
            "Export with a mask of one number per token.",
        )
    known = ((INPUTS_EMBEDS, shape.d_model, "wide"), (LOGITS, shape.vocabulary, "tokens large"))
    for name, expected, unit in known:
        sizes = list(values[name].shape or [])
        if len(sizes) != 3:
            raise UnsupportedGraph(f"{name} has shape {values[name].shape}, not [batch, sequence, …].", _ADVICE)
        if isinstance(sizes[2], int) and sizes[2] != expected:
            raise WrongBase(
                f"The decoder's {name} are {sizes[2]} {unit}, the checkpoint's {expected}.",
                "Pass the decoder that was exported from this checkpoint.",
            )


def _drop_outputs(graph: ir.Graph) -> list[str]:
    other = [value for value in graph.outputs if value.name != LOGITS and not str(value.name).startswith(PRESENT)]
    for value in other:
        graph.outputs.remove(value)
    return [f"outputs left out: {', '.join(str(value.name) for value in other)}"] if other else []


def _name_sizes(graph: ir.Graph, shape: DecoderShape) -> None:
    """One name per size that varies, in every shape of the graph."""
    ours: dict[str, list[int | str]] = {
        INPUTS_EMBEDS: ["batch", "sequence", shape.d_model],
        ATTENTION_MASK: ["batch", "total"],
        LOGITS: ["batch", "sequence", shape.vocabulary],
    }
    names: dict[str, int | str] = {}
    for value in (*graph.inputs, *graph.outputs):
        name, sizes = str(value.name), list(value.shape or [])
        wanted = ours.get(name)
        if name.startswith((PAST, PRESENT)):
            length = "past_sequence" if name.startswith("past") else "total"
            wanted = ["batch", shape.n_kv_heads, length, shape.head_dim]
        elif name == POSITION_IDS:
            wanted = [*(size for size in sizes[:-2] if isinstance(size, int)), "batch", "sequence"]
        if wanted is None or (name == LOGITS and sizes[1:2] == [1]):
            wanted = [*(wanted or sizes)[:1], *sizes[1:]] if name == LOGITS else sizes
        if value.is_graph_input() or name not in ours:
            for size, new in zip(sizes, wanted, strict=False):
                if isinstance(size, ir.SymbolicDim) and size.value is not None:
                    names.setdefault(size.value, new)
        value.shape = ir.Shape(wanted)
    fixed = {*graph.inputs, *graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value.shape is not None and value not in fixed:
                value.shape = ir.Shape([_renamed(size, names) for size in value.shape])


def _renamed(size: int | ir.SymbolicDim, names: dict[str, int | str]) -> int | str | None:
    return size if isinstance(size, int) else names.get(str(size.value), size.value)


def _cast_inputs(graph: ir.Graph) -> list[str]:
    changes = []
    for value in list(graph.inputs):
        if value.name not in (ATTENTION_MASK, POSITION_IDS) or value.dtype == ir.DataType.INT64:
            continue
        readers = list(value.uses())
        cast = ir.node("Cast", [value], {"to": int(value.dtype or ir.DataType.INT32)})
        for node, index in readers:
            node.replace_input_with(index, cast.outputs[0])
        cast.outputs[0].name, cast.outputs[0].dtype = f"{value.name}.cast", value.dtype
        cast.outputs[0].shape = value.shape
        graph.insert_before(graph[0], cast)
        changes.append(f"{value.name} cast from int64")
        value.dtype = ir.DataType.INT64
    return changes
