"""NullSteer as a method."""

from __future__ import annotations

from ..method import Method
from .settings import NullSteer

METHOD = Method(
    name="nullsteer",
    title="NullSteer",
    summary="NullSteer: harmful states moved towards refusal in the null space of harmless ones, without a gate.",
    settings=NullSteer,
    fit="safetykit.adapters.nullsteer.nullsteer:fit_on",
    require="safetykit.adapters.nullsteer.nullsteer:require_records",
    example="--site mlp --layers 4-6",
    takes=("on", "gate_by"),
    pushes="safetykit.adapters.artifact.sites:sites_of",
    sweep="safetykit.adapters.nullsteer.sweep:PLAN",
    ops=("safetykit.adapters.nullsteer.ops",),
    sections="safetykit.adapters.nullsteer.section:SECTIONS",
)
