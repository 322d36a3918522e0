"""The streaming guard as a method."""

from __future__ import annotations

from ..method import Method
from .settings import StreamingGuard

METHOD = Method(
    name="streaming-guard",
    title="streaming guard",
    summary="Streaming guard: a probe of several layers read at every token, which pushes towards refusal.",
    settings=StreamingGuard,
    fit="safetykit.adapters.streaming_guard.guard:fit_on",
    require="safetykit.adapters.streaming_guard.guard:require_records",
    example="--action once --layers 2,4,6 --false-positive-rate 0.01",
    budgeted=True,
    takes=("with", "on"),
    ops=("safetykit.adapters.streaming_guard.ops",),
    sections="safetykit.adapters.streaming_guard.section:SECTIONS",
)
