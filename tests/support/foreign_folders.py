"""Base graphs as others would have written them: a real builder's, and our own graphs in foreign clothes."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import LlamaForCausalLM

from safetykit.export.base.own import save_graph
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.toolkit.model.vlm import VLM


def save_text_tower(vlm: VLM, folder: Path) -> Path:
    """The decoder of a LLaVA as a plain causal language model, with its tokenizer."""
    text = vlm.model.config.text_config
    model = LlamaForCausalLM(text)
    model.model, model.lm_head = vlm.model.model.language_model, vlm.model.lm_head
    model.config.architectures = ["LlamaForCausalLM"]
    model.save_pretrained(folder)
    vlm.inputs.tokenizer.save_pretrained(folder)
    return folder


def build_genai(tower: Path, folder: Path, precision: str, *, provider: str = "cpu") -> Path:
    """What ONNX Runtime GenAI's builder makes of a text tower, embeddings excluded: its command, in this process."""
    command = [
        *("builder", "-i", str(tower), "-o", str(folder), "-p", precision, "-e", provider),
        *("-c", str(folder.parent / "cache"), "--extra_options", "exclude_embeds=true"),
    ]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(sys, "argv", command)
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")
    return folder


def in_foreign_clothes(decoder: Path, folder: Path, table: torch.Tensor) -> Path:
    """Our decoder as optimum writes them: token ids in, weights in the one file, its names for sizes."""
    model = loaded(decoder)
    graph = model.graph
    embeds = next(value for value in graph.inputs if value.name == "inputs_embeds")
    ids = ir.val("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
    tensor = ir.tensor(table.detach().numpy(), name="model.embed_tokens.weight")
    weight = ir.val(tensor.name, tensor.dtype, tensor.shape, const_value=tensor)
    graph.register_initializer(weight)
    gather = ir.node("Gather", [weight, ids])
    gather.outputs[0].name, gather.outputs[0].dtype, gather.outputs[0].shape = "embedded", embeds.dtype, embeds.shape
    graph.insert_before(graph[0], gather)
    for reader, index in list(embeds.uses()):
        reader.replace_input_with(index, gather.outputs[0])
    graph.inputs[0] = ids
    for value in graph.inputs:
        if value.name == "attention_mask":
            value.shape = ir.Shape(["batch_size", "past_sequence_length + sequence_length"])
    folder.mkdir(parents=True)
    ir.save(model, folder / "model.onnx")
    return folder


def in_transformers_js(base: Path, folder: Path, suffix: str = "", decoder: ir.Model | None = None) -> Path:
    """Our three graphs under the names of transformers.js."""
    place = folder / "onnx"
    place.mkdir(parents=True)
    for name in ("embed_tokens", "vision_encoder"):
        ir.save(loaded(base / f"{name}.onnx"), place / f"{name}{suffix}.onnx")
    model = decoder or loaded(base / "decoder.onnx")
    save_graph(model, place / f"decoder_model_merged{suffix}.onnx")
    return folder


def merged(decoder: Path, *, one_token: bool = False, extra: float = 0.0) -> ir.Model:
    """A decoder with two bodies, switched by ``use_cache_branch``.

    Args:
        one_token: the body with a cache was traced for one token at a time.
        extra: added to the logits of the body without a cache.
    """
    model = loaded(decoder)
    plain = loaded(decoder)
    graph = model.graph
    names = [value.name for value in graph.outputs]
    bodies = []
    outer = {value.name: value for value in (*graph.inputs, *graph.initializers.values())}
    for source, tag in ((graph, "past"), (plain.graph, "none")):
        outputs = list(source.outputs)
        source.outputs.clear()
        nodes = list(source)
        source.remove(nodes)
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is not None and value.name in outer:
                    node.replace_input_with(index, outer[value.name])
            node.name = f"{tag}.{node.name}"
            for value in node.outputs:
                value.name = f"{tag}.{value.name}"
        if tag == "none":
            _without_cache(nodes)
        bodies.append(_body(nodes, outputs, tag, one_token=one_token and tag == "past", extra=extra * (tag == "none")))
    switch = ir.val("use_cache_branch", ir.DataType.BOOL, [1])
    graph.inputs.append(switch)
    node = ir.node("If", [switch], {"then_branch": bodies[0], "else_branch": bodies[1]}, num_outputs=len(names))
    for value, name, old in zip(node.outputs, names, bodies[0].outputs, strict=True):
        value.name, value.dtype, value.shape = name, old.dtype, old.shape
    graph.append(node)
    graph.outputs.extend(node.outputs)
    return model


def _without_cache(nodes: list[ir.Node]) -> None:
    """Let a body read no cache: an empty one of its own stands in."""
    empty: dict[str, ir.Value] = {}
    for node in list(nodes):
        for index, value in enumerate(node.inputs):
            if value is not None and str(value.name).startswith("past_key_values."):
                if value.name not in empty:
                    heads, width = value.shape[1], value.shape[3]
                    embeds = next(v for n in nodes for v in n.inputs if v is not None and v.name == "inputs_embeds")
                    rows = ir.node("Shape", [embeds], {"start": 0, "end": 1})
                    rest = ir.node("Constant", [], {"value": ir.tensor(np.array([heads, 0, width]))})
                    size = ir.node("Concat", [rows.outputs[0], rest.outputs[0]], {"axis": 0})
                    blank = ir.node("ConstantOfShape", [size.outputs[0]])
                    made = (rows, rest, size, blank)
                    for at, one in enumerate(made):
                        one.name = f"none.empty.{value.name}.{at}"
                        one.outputs[0].name = f"none.empty.{value.name}.{at}"
                    nodes[:0] = made
                    empty[str(value.name)] = blank.outputs[0]
                node.replace_input_with(index, empty[str(value.name)])


def _body(nodes: list[ir.Node], outputs: list[ir.Value], tag: str, *, one_token: bool, extra: float) -> ir.Graph:
    if one_token or extra:
        last = next(value for value in outputs if str(value.name).endswith("logits"))
        if one_token:  # what a tracer fixes when it only ever saw one token
            shape = ir.node("Constant", [], {"value": ir.tensor(np.array([-1, 1, last.shape[2]]))})
            change = ir.node("Reshape", [last, shape.outputs[0]])
        else:
            shape = ir.node("Constant", [], {"value": ir.tensor(np.array([extra], np.float32))})
            change = ir.node("Add", [last, shape.outputs[0]])
        shape.outputs[0].name, change.outputs[0].name = f"{tag}.fixed", f"{tag}.changed"
        change.outputs[0].dtype, change.outputs[0].shape = last.dtype, last.shape
        nodes = [*nodes, shape, change]
        outputs = [change.outputs[0] if value is last else value for value in outputs]
    return ir.Graph([], outputs, nodes=nodes, name=tag)


def loaded(path: Path) -> ir.Model:
    """A graph with its weights in memory."""
    model = ir.load(path)
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    return model


def assert_same(vlm, onnx_vlm, relative=1e-5, steps=3):
    for case, requests in parity_requests().items():
        gap = compare_logits(vlm, onnx_vlm, requests, steps).logits
        assert gap.error <= relative * gap.scale, case


def shaken(model, share, seed=0):
    """The weights of a sibling: each value moved by about ``share`` of a weight's size."""
    random = np.random.default_rng(seed)
    for value in model.graph.initializers.values():
        array = value.const_value.numpy() if value.const_value is not None else np.zeros(0)
        if array.ndim == 2 and array.dtype == np.float32:
            moved = array + share * array.std() * random.standard_normal(array.shape).astype(np.float32)
            value.const_value = ir.tensor(moved, name=value.name)
    return model
