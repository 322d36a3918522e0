"""What a diagnosis is about and what it counts, as a channel map states it; needs no torch."""

from __future__ import annotations

from typing import Literal

from ...adapters.artifact.manifest import Strict
from ..evaluation.evaluate import Rate
from .intervals import Estimate

Modality = Literal["textual", "visual"]  # of a pair: the harm is written, or shown
Positions = Literal["all", "vision", "text", "last"]  # which tokens of a prompt, as scopes are called
MediatorKind = Literal["attn", "mlp", "block"]
KINDS: tuple[MediatorKind, ...] = ("attn", "mlp", "block")


class Window(Strict):
    """What skipping some layers does.

    Attributes:
        layers: the skipped ones; empty for the whole model.
        attack_success_change, refused_change: share minus that of the whole model, with a paired interval.
    """

    layers: tuple[int, ...]
    attack_success: Rate
    refused: Rate
    attack_success_change: Estimate
    refused_change: Estimate


class Curve(Strict):
    """A measure per decoder layer, from 0.

    Attributes:
        low, high: bounds of the 95 % interval; None where the measure has none.
    """

    measure: str
    records: str
    values: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None

    @classmethod
    def of(cls, measure: str, records: str, estimates: list[Estimate]) -> Curve:
        """From one estimate per layer."""
        return cls(
            measure=measure,
            records=records,
            values=tuple(item.value for item in estimates),
            low=tuple(item.low for item in estimates),
            high=tuple(item.high for item in estimates),
        )
