"""Arranging an export folder for another runtime, in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ...adapters.artifact.adapter import Adapter
from ...adapters.errors import UsageError
from ..base.own import graph_info
from ..manifest import GRAPHS, LAYOUT, ExportManifest, Graph, LayoutName, write_manifest
from ..names import TOKEN_TYPES, VISION_MASK
from . import genai, transformers_js, triton
from .carry import require_carried
from .surgery import add_mask_channel, number_phases, relocate

# What families say of tokens beside their ids: which are a picture's, and which are prompt (0) and answer (1).
TYPES_BY_PICTURE, TYPES_BY_PHASE = ("gemma3",), ("paligemma",)


@dataclass(frozen=True)
class Plan:
    """How a layout is made.

    Attributes:
        families: model types it is made for; None for all.
        embeddings_only: its runtime feeds the decoder nothing but embeddings, masks, positions and the cache.
        paths: where the graphs go.
        data_name: name of data file number 0 (the base's weights) or 1 (the adapter's) of a graph file.
        change: further changes of the graphs, in place; raises UsageError for what the runtime cannot run.
        finish: writes the runtime's own files.
    """

    families: Collection[str] | None
    embeddings_only: bool
    paths: Callable[[Mapping[Graph, ir.Model]], Mapping[Graph, str]]
    data_name: Callable[[str, int], str]
    change: Callable[[Path, Mapping[Graph, ir.Model], ExportManifest], None]
    finish: Callable[[Path, Mapping[Graph, ir.Model], ExportManifest], None]


PLANS: Mapping[LayoutName, Plan] = {
    "transformers.js": Plan(
        transformers_js.FAMILIES,
        True,
        transformers_js.paths,
        transformers_js.data_name,
        transformers_js.change,
        transformers_js.finish,
    ),
    "genai": Plan(genai.TYPES, True, genai.paths, genai.data_name, genai.change, genai.finish),
    "triton": Plan(None, False, triton.paths, triton.data_name, triton.change, triton.finish),
}


def require_layout(layout: LayoutName, architecture: str, adapters: Sequence[Adapter], *, enforce: bool) -> None:
    """Refuse what a layout cannot hold; worth calling before long work.

    Args:
        architecture: ``model_type`` of the base.

    Raises:
        UsageError: its runtime does not know the architecture, or would lose what an adapter does.
    """
    if layout == "onnx":
        return
    families = PLANS[layout].families
    if families is not None and architecture not in families:
        raise UsageError(
            f"The layout {layout} is not made for the architecture {architecture!r}.",
            f"It is made for {', '.join(sorted(families))}; use --layout onnx.",
        )
    require_carried(adapters, layout, enforce=enforce)


def arrange(folder: Path, manifest: ExportManifest, layout: LayoutName) -> ExportManifest:
    """Arrange ``folder``, which is in the layout ``onnx``; weights are moved, not rewritten.

    Returns:
        The manifest of what the folder now holds, as written.

    Raises:
        UsageError: the layout's runtime cannot run these graphs.
    """
    if layout == "onnx":
        return manifest
    plan = PLANS[layout]
    models = {name: ir.load(folder / LAYOUT.graph(name)) for name in GRAPHS}
    mask_channel = False
    if plan.embeddings_only:
        if manifest.family in TYPES_BY_PHASE:
            number_phases(models["decoder"], TOKEN_TYPES)
        at_images = (VISION_MASK, TOKEN_TYPES) if manifest.family in TYPES_BY_PICTURE else (VISION_MASK,)
        mask_channel = add_mask_channel(models, manifest.image_token_id, *at_images)
    manifest = manifest.model_copy(
        update={"layout": layout, "paths": dict(plan.paths(models)), "mask_channel": mask_channel}
    )
    plan.change(folder, models, manifest)
    for name in GRAPHS:
        _move(folder, models[name], name, manifest.graph_file(name), plan.data_name)
    graphs = {name: graph_info(models[name]) for name in GRAPHS}
    manifest = manifest.model_copy(update={"graphs": graphs})
    plan.finish(folder, models, manifest)
    return write_manifest(manifest, folder)


def _move(folder: Path, model: ir.Model, name: Graph, path: str, data_name: Callable[[str, int], str]) -> None:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    old = [LAYOUT.data(name), LAYOUT.adapter_data(name)]
    relocate(model, {file: data_name(target.name, number) for number, file in enumerate(old)})
    (folder / LAYOUT.graph(name)).unlink()
    for number, file in enumerate(old):
        if (folder / file).exists():
            os.replace(folder / file, target.parent / data_name(target.name, number))
    if (swappable := folder / LAYOUT.adapter_file(name)).exists() and swappable.parent != target.parent:
        os.replace(swappable, target.parent / swappable.name)
    ir.save(model, target)
