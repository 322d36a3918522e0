"""The refusal direction as a method."""

from __future__ import annotations

from ..artifact.sites import Site
from ..method import Method
from .settings import RefusalDirection


def pushed(settings: RefusalDirection, depth: int) -> list[Site]:
    """Where a vector is added in a decoder of ``depth`` blocks."""
    return [Site.block(depth // 2 if settings.layer is None else settings.layer)]


METHOD = Method(
    name="refusal-direction",
    title="refusal direction",
    summary="Refusal direction: one vector added to every state, or taken out of it; a baseline and controls.",
    settings=RefusalDirection,
    fit="safetykit.adapters.refusal_direction.direction:fit_on",
    require="safetykit.adapters.refusal_direction.direction:require_records",
    example="--layer 4 --strength 0.5",
    takes=("on", "gate_by"),
    acts={"gate_by": ({"variant": ("addition", "random")},)},
    pushes=pushed,
    sweep="safetykit.adapters.refusal_direction.sweep:PLAN",
    ops=("safetykit.adapters.refusal_direction.ops", "safetykit.adapters.ops.projection"),
)
