"""CAST as a method."""

from __future__ import annotations

from ..method import Method
from .settings import CAST

METHOD = Method(
    name="cast",
    title="CAST",
    summary="CAST: the refusal direction, added only where the prompt's state meets a condition; a baseline.",
    settings=CAST,
    fit="safetykit.adapters.cast.cast:fit_on",
    require="safetykit.adapters.cast.cast:require_records",
    example="--layers 4 --condition mean",
    takes=("on",),
    sweep="safetykit.adapters.cast.sweep:PLAN",
    ops=("safetykit.adapters.cast.ops",),
)
