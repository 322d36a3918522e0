"""LEACE as a method."""

from __future__ import annotations

from ..method import Method
from .settings import LEACE

METHOD = Method(
    name="leace",
    title="LEACE",
    summary="LEACE: no linear probe can tell any more whether there is a picture, or harm; a baseline and a control.",
    settings=LEACE,
    fit="safetykit.adapters.leace.leace:fit_on",
    require="safetykit.adapters.leace.leace:require_records",
    example="--concept modality --layers 3",
    takes=("on",),
    sweep="safetykit.adapters.leace.sweep:PLAN",
    ops=("safetykit.adapters.leace.ops",),
)
