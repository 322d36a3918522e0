"""SASA as a method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from ..method import Method
from ..protocols import ChannelLayers
from .settings import SASA


def layers_of_map(given: Mapping[str, Any], channels: ChannelLayers, count: int | None) -> dict[str, Any]:
    """The safety layer and the fused layer that a diagnosis found.

    Raises:
        UsageError: the variant has none.
    """
    if given.get("variant") == "unprojected":
        raise UsageError(
            "--map says where SASA acts, and the unprojected variant acts nowhere.", "Leave out one of them."
        )
    return {"safety_layer": channels.safety_layer, "fused_layer": channels.fused_layer}


METHOD = Method(
    name="sasa",
    title="SASA",
    summary="SASA: a probe before generation, on late semantics projected onto an early layer.",
    settings=SASA,
    fit="safetykit.adapters.statistics.probe_fit:fit_on",
    require="safetykit.adapters.statistics.probe_fit:require_records",
    used="safetykit.adapters.statistics.probe_fit:used_records",
    example="--with GUARD --false-positive-rate 0.01",
    budgeted=True,
    takes=("refusal", "map", "with", "on"),
    map=layers_of_map,
    ops=("safetykit.adapters.sasa.sasa",),
)
