"""VLM-Guard as a method."""

from __future__ import annotations

from ..method import Method
from .settings import VLMGuard

METHOD = Method(
    name="vlm-guard",
    title="VLM-Guard",
    summary="VLM-Guard: the safety direction of the language model, applied to the VLM.",
    settings=VLMGuard,
    fit="safetykit.adapters.vlm_guard.guard:fit_on",
    require="safetykit.adapters.vlm_guard.guard:require_records",
    example="--variant orthogonal --site mlp --layers 3-5 --scope all --phase both",
    takes=("text_model", "on", "gate_by"),
    acts={"gate_by": ({"variant": ("steer", "target", "orthogonal")},)},
    pushes="safetykit.adapters.artifact.sites:sites_of",
    own_gate=("gate", "false_positive_rate", "hold"),
    sweep="safetykit.adapters.vlm_guard.sweep:PLAN",
    ops=("safetykit.adapters.vlm_guard.ops", "safetykit.adapters.ops.projection"),
)
