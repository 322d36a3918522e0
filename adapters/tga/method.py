"""TGA as a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..method import Method
from ..protocols import ChannelLayers
from .settings import TGA


def layers_of_map(given: Mapping[str, Any], channels: ChannelLayers, count: int | None) -> dict[str, Any]:
    """The layers that a diagnosis found worth aligning."""
    return {"layers": channels.align_layers}


METHOD = Method(
    name="tga",
    title="TGA",
    summary="TGA: pictures aligned with their captions, without safety labels.",
    settings=TGA,
    fit="safetykit.adapters.tga.tga:fit_on",
    example="--variant closed-form",
    data="captions",
    takes=("map", "index", "resume"),
    acts={
        "index": ({"variant": ("projector", "low-rank", "lora"), "retrieval": True},),
        "resume": ({"variant": ("projector", "low-rank", "lora")},),
    },
    map=layers_of_map,
    dtype="float32",
    sections="safetykit.adapters.tga.section:SECTIONS",
)
