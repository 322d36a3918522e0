"""Arranging an export folder for another runtime, in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from ...adapters.artifact.adapter import Adapter
from ...adapters.errors import UsageError
from ...toolkit.families import families
from ..base.own import graph_info
from ..base.reading import loaded
from ..manifest import GRAPHS, LAYOUT, ExportManifest, Graph, write_manifest
from ..names import TOKEN_TYPES, VISION_MASK
from .carry import require_carried
from .mask_channel import add_mask_channel
from .registry import get_layout
from .surgery import number_phases, relocate


def require_layout(layout: str, architecture: str, adapters: Sequence[Adapter], *, enforce: bool) -> None:
    """Refuse what a layout cannot hold; worth calling before long work.

    Args:
        architecture: ``model_type`` of the base.

    Raises:
        UsageError: there is no such layout, or its runtime does not know the architecture or would lose what an
            adapter does.
    """
    chosen = get_layout(layout)
    if chosen.some_families and chosen.facts(architecture) is None:
        raise UsageError(
            f"The layout {layout} is not made for the architecture {architecture!r}.",
            f"It is made for {', '.join(sorted(chosen.made_for()))}; use --layout onnx.",
        )
    require_carried(adapters, layout, enforce=enforce)


def arrange(folder: Path, manifest: ExportManifest, layout: str) -> ExportManifest:
    """Arrange ``folder``, which is in the layout ``onnx``; weights are moved, not rewritten.

    Returns:
        The manifest of what the folder now holds, as written.

    Raises:
        UsageError: the layout's runtime cannot run these graphs.
    """
    if layout == "onnx":
        return manifest
    chosen = get_layout(layout)
    models = {name: loaded(folder / LAYOUT.graph(name)) for name in GRAPHS}
    mask_channel = False
    if chosen.embeddings_only:
        family = families().get(manifest.family or "")
        types = None if family is None else family.token_types
        if types == "phases":
            number_phases(models["decoder"], TOKEN_TYPES)
        at_images = (VISION_MASK, TOKEN_TYPES) if types == "pictures" else (VISION_MASK,)
        mask_channel = add_mask_channel(models, manifest.image_token_id, *at_images)
    manifest = manifest.model_copy(
        update={"layout": layout, "paths": dict(chosen.paths(models)), "mask_channel": mask_channel}
    )
    chosen.change(folder, models, manifest)
    for name in GRAPHS:
        _move(folder, models[name], name, manifest.graph_file(name), chosen.data_name)
    graphs = {name: graph_info(models[name]) for name in GRAPHS}
    manifest = manifest.model_copy(update={"graphs": graphs})
    chosen.finish(folder, models, manifest)
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
