"""CARE as a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..artifact.sites import Site
from ..method import Method
from ..protocols import ChannelLayers
from .settings import CARE

_LAYERS_OF_MAP = 4


def layers_of_map(given: Mapping[str, Any], channels: ChannelLayers, count: int | None) -> dict[str, Any]:
    """The layers of each modality that a diagnosis found: ``count`` of them, four by default."""
    wanted = count or _LAYERS_OF_MAP
    modalities = given.get("modalities", "both")
    if modalities == "both":
        textual = channels.layers_for("textual", wanted)
        return {"layers": channels.layers_for("visual", wanted), "textual_layers": textual}
    return {"layers": channels.layers_for(modalities, wanted)}


def pushed(care: CARE, depth: int) -> list[Site]:
    """Where it acts in a decoder of ``depth`` blocks."""
    layers = {*(care.layers or (depth // 2,)), *(care.textual_layers or ())}
    return [Site("mlp" if care.variant == "official" else care.site, layer) for layer in sorted(layers)]


METHOD = Method(
    name="care",
    title="CARE",
    summary="CARE: safety subspaces of both modalities, projected out of the hidden states.",
    settings=CARE,
    fit="safetykit.adapters.care.care:fit_on",
    require="safetykit.adapters.care.care:require_records",
    example="--fusion sequential --site mlp --layers 12-14",
    takes=("map", "map_layers", "on", "gate_by"),
    pushes=pushed,
    usual="safetykit.adapters.care.usual:usual",
    map=layers_of_map,
    sweep="safetykit.adapters.care.sweep:PLAN",
    ops=("safetykit.adapters.care.ops", "safetykit.adapters.ops.projection"),
    sections="safetykit.adapters.care.section:SECTIONS",
)
