"""HiddenDetect as a method."""

from __future__ import annotations

from ..method import Method
from .settings import HiddenDetect

METHOD = Method(
    name="hidden-detect",
    title="HiddenDetect",
    summary="HiddenDetect: how much of a refusal the last state holds already; a detector without a fit.",
    settings=HiddenDetect,
    fit="safetykit.adapters.hidden_detect.detect:fit_on",
    used="safetykit.adapters.hidden_detect.detect:used_records",
    require="safetykit.adapters.hidden_detect.detect:require_records",
    example="--false-positive-rate 0.01",
    budgeted=True,
    takes=("refusal", "with", "on"),
    ops=("safetykit.adapters.hidden_detect.ops",),
)
