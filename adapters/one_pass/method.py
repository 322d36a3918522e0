"""The one-pass probe as a method."""

from __future__ import annotations

from ..method import Method
from .settings import OnePassProbe

METHOD = Method(
    name="one-pass",
    title="one-pass probe",
    summary="One-pass probe: a cheap detector on one block, without SASA's second pass.",
    settings=OnePassProbe,
    fit="safetykit.adapters.statistics.probe_fit:fit_on",
    require="safetykit.adapters.statistics.probe_fit:require_records",
    used="safetykit.adapters.statistics.probe_fit:used_records",
    example="--with GUARD --false-positive-rate 0.01",
    budgeted=True,
    takes=("refusal", "with", "on"),
    ops=("safetykit.adapters.one_pass.probe", "safetykit.adapters.sasa.sasa"),
)
