"""Foreign base graphs into an export folder, checked against the checkpoint that the adapter was fitted on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import TopologicalSortPass

from ...adapters.errors import SafetykitError, UsageError, WrongBase
from ...toolkit.families.family import kv_shape
from ..base.matrices import QUANTISED
from ..base.own import graph_info, write_base
from ..manifest import (
    CHECKPOINT,
    GRAPHS,
    LAYOUT,
    ExportManifest,
    ForeignInfo,
    Graph,
    Precision,
    WeightsInfo,
    write_manifest,
)
from ..names import INPUT_IDS, INPUTS_EMBEDS, PIXEL_VALUES
from ..surgery.residual import find_residual_stream, require_unadapted
from .files import load_graph, save_beside
from .merged import is_merged, take_cached_branch
from .normalise import DecoderShape, normalise
from .probing import continues_prompts, gives_last_logits_only, open_model, require_same_prompt, understands_padding
from .recognise import FoundGraphs, find_graphs
from .weights import DecoderWeights, find_weights, require_same_weights

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM

# Largest difference of embeddings and image features from the checkpoint's, as a share of the largest one.
_LIMITS: dict[str, float] = {"fp32": 1e-4, "fp16": 1e-2, "int4": 0.25, "int8": 0.1}
_ADVICE = "Pass the folder that was exported from this checkpoint."


def import_graphs(
    vlm: VLM,
    folder: Path,
    work: Path,
    precision: Precision,
    say: Callable[[str], None],
    *,
    allow_wrong_base: bool = False,
) -> ExportManifest:
    """Put the graphs of ``folder`` into ``work``; those that it lacks are exported from the checkpoint.

    Args:
        precision: which the folder's decoder must have; chosen where it holds several.
        allow_wrong_base: accept weights that are not the checkpoint's, as far as parity does: it compares with the
            weights that a quantised graph holds, so those of another quantiser pass, and another float model does not.

    Returns:
        The manifest, as written; its ``foreign`` says what was found.

    Raises:
        UsageError: the layout is not known, or the decoder has another precision.
        UnsupportedGraph: a graph is adapted already or is not understood.
        WrongBase: the decoder is not that of the checkpoint.
    """
    found = find_graphs(folder, precision)
    say(f"reading the {found.layout} decoder {found.decoder.name}")
    sources: dict[str, str] = {"decoder": found.decoder.name}
    with vlm.in_memory():
        changes, weights, opset, half = _import_decoder(vlm, found, work, precision, allow_wrong_base)
        for name in ("embed_tokens", "vision_encoder"):
            path = getattr(found, name)
            if path is None:
                continue
            refused = _import_other(vlm, path, work, name, half, allow_wrong_base)
            if refused is None:
                sources[name] = path.name
            else:
                changes.append(f"{path.name} not used: {refused}")
    for name in GRAPHS:
        sources.setdefault(name, CHECKPOINT)
    missing = [name for name in GRAPHS if sources[name] == CHECKPOINT]
    if missing:
        say(f"taking {' and '.join(missing)} from the checkpoint")
    base = write_base(vlm, work, "fp16" if half else "fp32", say, wanted=missing)
    decoder = work / LAYOUT.decoder
    graphs = {name: graph_info(ir.load(work / LAYOUT.graph(name))) for name in GRAPHS}
    foreign = ForeignInfo(
        layout=found.layout,
        sources=sources,
        changes=tuple(changes),
        weights=weights,
        rows_alone=not understands_padding(decoder, ir.load(decoder).graph),
        last_logits=gives_last_logits_only(decoder),
        continues=continues_prompts(decoder),
    )
    changed = {"precision": precision, "opset": opset, "graphs": graphs, "foreign": foreign}
    return write_manifest(base.model_copy(update=changed), work)


def _import_decoder(
    vlm: VLM, found: FoundGraphs, work: Path, precision: Precision, allow_wrong_base: bool
) -> tuple[list[str], WeightsInfo, int, bool]:
    model = load_graph(found.decoder)
    require_unadapted(model)
    changes = []
    if is_merged(model):
        take_cached_branch(model)
        require_same_prompt(found.decoder, model)
        changes.append("the merged decoder's body with a cache stands for both")
    changes += normalise(model, _shape(vlm))
    stream = find_residual_stream(model)
    weights = find_weights(vlm, model, stream)
    embeds = next(value for value in model.graph.inputs if value.name == INPUTS_EMBEDS)
    half = embeds.dtype == ir.DataType.FLOAT16
    _require_precision(found, weights, half, precision)
    try:
        compared = require_same_weights(vlm, model, weights)
    except WrongBase as error:
        if not allow_wrong_base:
            raise
        changes.append(f"accepted all the same: {error.message}")
        compared = WeightsInfo(exact=0, nearest=0, unread=weights.unread, values=0)
    save_beside(model, work, "decoder")
    return changes, compared, model.graph.opset_imports.get("", 0), half


def _shape(vlm: VLM) -> DecoderShape:
    text = vlm.model.config.get_text_config()
    heads, head_dim = kv_shape(text)
    return DecoderShape(
        n_layers=text.num_hidden_layers,
        n_kv_heads=heads,
        head_dim=head_dim,
        d_model=text.hidden_size,
        vocabulary=vlm.parts.head.weight.shape[0],
        inputs=[one.name for one in vlm.inputs.family.decoder_inputs(vlm.model.config)],
    )


def _require_precision(found: FoundGraphs, weights: DecoderWeights, half: bool, wanted: Precision) -> None:
    bits = [item.matrix.bits for item in weights.found if item.matrix.bits]
    actual: Precision = ("int4" if min(bits) <= 4 else "int8") if bits else "fp16" if half else "fp32"
    if actual != wanted:
        raise UsageError(
            f"The decoder {found.decoder} is {actual}, not {wanted}.",
            f"Pass --precision {actual}, or another folder with --base-onnx.",
        )


def _import_other(vlm: VLM, path: Path, work: Path, name: Graph, half: bool, allow_wrong_base: bool) -> str | None:
    """Import an embedding or a vision encoder; why it cannot be used, if it cannot.

    Raises:
        WrongBase: it can, but gives other values than the checkpoint.
    """
    try:
        model = load_graph(path)
        _name_interface(vlm, model, name)
        ours, theirs = _reference(vlm, name), open_model(model, path.parent).run(None, _example(vlm, name))[0]
    except SafetykitError as error:
        return error.message
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        return str(error).splitlines()[0][:160]
    kinds = {node.op_type for node in model.graph}
    quantised = bool(kinds & set(QUANTISED))
    limit = _LIMITS["int4" if quantised else "fp16" if "f16" in path.stem or half else "fp32"]
    if ours.size != theirs.size:
        return f"it gives {theirs.shape}, the checkpoint {ours.shape}"
    error = float(np.abs(ours.ravel() - theirs.ravel().astype(np.float32)).max() / np.abs(ours).max())
    if not error <= limit and not allow_wrong_base:
        raise WrongBase(
            f"{path.name} gives other values than the checkpoint: {error:.2g} of the largest one apart.", _ADVICE
        )
    _cast_output(model, ir.DataType.FLOAT16 if half else ir.DataType.FLOAT)
    save_beside(model, work, name)
    return None


def _name_interface(vlm: VLM, model: ir.Model, name: Graph) -> None:
    """Names and sizes as ours.

    Raises:
        UsageError: other inputs, or several outputs.
    """
    graph, family = model.graph, vlm.inputs.family
    if name == "embed_tokens":
        wanted, output = {INPUT_IDS: ["batch", "sequence"]}, INPUTS_EMBEDS
    else:
        inputs = family.vision_inputs(vlm.model.config)
        wanted, output = {one.name: list(one.shape) for one in inputs}, family.vision_outputs[0]
    found = {str(value.name) for value in graph.inputs}
    if found != set(wanted) or len(graph.outputs) != 1 or family.scattered:
        raise UsageError(f"it takes {', '.join(sorted(found))} and gives {len(graph.outputs)} outputs")
    for value in graph.inputs:
        value.shape = ir.Shape(wanted[str(value.name)])
    graph.outputs[0].name = output


def _example(vlm: VLM, name: Graph) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    if name == "embed_tokens":
        return {INPUT_IDS: random.integers(0, vlm.parts.embed_tokens.weight.shape[0], (2, 32))}
    found = dict(vlm.inputs.family.vision_example(vlm.model.config))
    shape = found[PIXEL_VALUES].shape
    return found | {PIXEL_VALUES: random.standard_normal(shape).astype(np.float32)}


@torch.inference_mode()
def _reference(vlm: VLM, name: Graph) -> np.ndarray:
    feeds = {key: torch.from_numpy(value).to(vlm.device) for key, value in _example(vlm, name).items()}
    if name == "embed_tokens":
        return vlm.parts.embed_tokens(feeds[INPUT_IDS]).float().cpu().numpy()
    return vlm.inputs.family.vision(vlm.model, **feeds)[0].float().cpu().numpy()


def _cast_output(model: ir.Model, dtype: ir.DataType) -> None:
    """Have the one output come in the decoder's type."""
    (value,) = model.graph.outputs
    if value.dtype == dtype:
        return
    cast = ir.node("Cast", [value], {"to": int(dtype)})
    model.graph.append(cast)
    result = cast.outputs[0]
    result.name, value.name = value.name, f"{value.name}.uncast"
    result.dtype, result.shape = dtype, value.shape
    model.graph.outputs[0] = result
    TopologicalSortPass()(model)
