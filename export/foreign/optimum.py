"""An adapted decoder for optimum's own loader, ``ORTModelForCausalLM``: the token embedding joined on again.

    model.onnx          input_ids, attention_mask, position_ids, past_key_values.* → logits, present.*
    config.json         the text model's configuration

That loader knows no pictures: what it runs is the VLM's text model with the adapter in it. Risks and scores are left
out, since it knows no such outputs; a detector acts through its forced logits (``enforce``).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass, TopologicalSortPass

from ...adapters.artifact.files import CONFIGURATION_FILES, write_atomic
from ...adapters.artifact.hub import located
from ...adapters.artifact.manifest import canonical_json
from ...adapters.artifact.output import atomic_folder, mark_made
from ...adapters.errors import UsageError
from ..base.reading import read_graph
from ..manifest import read_manifest
from ..names import ATTENTION_MASK, INPUT_IDS, INPUTS_EMBEDS, LOGITS, PAST, POSITION_IDS, PRESENT, VISION_MASK

_TEXT = "embed_tokens/"


def write_optimum(export: Path, out: Path, *, overwrite: bool = False) -> Path:
    """Write the decoder of the export folder ``export`` as a folder that ``ORTModelForCausalLM`` loads.

    Raises:
        UsageError: its ops need inputs that the loader does not feed, or ``out`` is taken.
        InvalidArtifact: the export is damaged.
    """
    export = located(export)
    manifest = read_manifest(export)
    paths = {name: export / manifest.graph_file(name) for name in ("embed_tokens", "decoder")}
    model, embedding = read_graph(paths["decoder"]), read_graph(paths["embed_tokens"])
    _join(model, embedding)
    _require_feedable(model)
    with atomic_folder(out, overwrite=overwrite) as work:
        mark_made(work)
        for tensor in _external(model):
            shutil.copyfile(tensor.path, work / tensor.location)
        ir.save(model, work / "model.onnx")
        for name in set(CONFIGURATION_FILES) - {"config.json", "processor_config.json", "preprocessor_config.json"}:
            if (export / name).is_file():
                shutil.copyfile(export / name, work / name)
        write_atomic(work / "config.json", canonical_json(_text_config(export)))
    return out


def _external(model: ir.Model) -> list[ir.ExternalTensor]:
    """One tensor of each weights file."""
    tensors = [value.const_value for value in model.graph.initializers.values()]
    files = {tensor.path: tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    return [files[path] for path in sorted(files)]


def _join(model: ir.Model, embedding: ir.Model) -> None:
    """Put the embedding before the decoder, in place."""
    graph, other = model.graph, embedding.graph
    (ids,), (result,) = list(other.inputs), list(other.outputs)
    embeds = next(value for value in graph.inputs if value.name == INPUTS_EMBEDS)
    other.inputs.clear()
    other.outputs.clear()
    for name, value in list(other.initializers.items()):
        del other.initializers[name]
        value.name = f"{_TEXT}{name}"
        graph.register_initializer(value)
    nodes = list(other)
    other.remove(nodes)
    for node in nodes:
        node.name = f"{_TEXT}{node.name}"
        for value in node.outputs:
            value.name = f"{_TEXT}{value.name}"
    first = graph[0]
    graph.insert_before(first, nodes)
    for reader, index in list(embeds.uses()):
        reader.replace_input_with(index, result)
    graph.inputs[list(graph.inputs).index(embeds)] = ids
    mask = next((value for value in graph.inputs if value.name == VISION_MASK), None)
    if mask is not None:  # no token is one of a picture
        shape = ir.node("Shape", [ids])
        no = ir.node("Constant", [], {"value": ir.tensor(np.array([False]))})
        blank = ir.node("Expand", [no.outputs[0], shape.outputs[0]])
        graph.insert_before(first, [shape, no, blank])
        for reader, index in list(mask.uses()):
            reader.replace_input_with(index, blank.outputs[0])
        graph.inputs.remove(mask)
    kept = [value for value in graph.outputs if value.name == LOGITS or str(value.name).startswith(PRESENT)]
    graph.outputs.clear()
    graph.outputs.extend(kept)
    RemoveUnusedNodesPass()(model)
    RemoveUnusedFunctionsPass()(model)
    TopologicalSortPass()(model)


def _require_feedable(model: ir.Model) -> None:
    known = {INPUT_IDS, ATTENTION_MASK, POSITION_IDS}
    graph = model.graph
    needed = [
        str(value.name)
        for value in graph.inputs
        if value.name not in known and value.name not in graph.initializers and not str(value.name).startswith(PAST)
    ]
    if needed:
        raise UsageError(
            f"The decoder needs {', '.join(needed)}, which optimum's loader does not feed.",
            "Use safetykit's own runtime, or an adapter without per-call inputs.",
        )


def _text_config(export: Path) -> dict[str, object]:
    config = json.loads((export / "config.json").read_bytes())
    text = dict(config.get("text_config", config))
    text.setdefault("eos_token_id", config.get("eos_token_id"))
    rope = text.get("rope_parameters") or {}
    if "rope_theta" in rope:  # where transformers before 5 looks for it
        text.setdefault("rope_theta", rope["rope_theta"])
    text["architectures"] = [f"{str(text['model_type']).title().replace('_', '')}ForCausalLM"]
    return text
