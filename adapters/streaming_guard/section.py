"""``streaming.json``: how well the guard's probe tells records apart, and at which token; see :mod:`.evidence`."""

from __future__ import annotations

from typing import Any

from ..artifact.manifest import Strict
from ..section import Section


class Round(Strict):
    """One round of the fit."""

    states: int
    loss: float | None
    auroc: float | None
    calibration_loss: float
    recall: float


class Carrier(Strict):
    """Calibration records of one carrier."""

    harmful: int
    harmless: int
    recall: float | None
    false_positive_rate: float | None


class Streaming(Strict):
    """The attachment."""

    budget: float
    threshold: float
    false_positive_rate: float
    recall: float | None
    prompt_recall: float | None
    in_refusals: float | None
    rounds: list[Round]
    kept: int
    carriers: dict[str, Carrier]
    opens: list[int]

    @property
    def at_prompt(self) -> int:
        """Harmful records whose gate opens at the prompt."""
        return self.opens[0] if self.opens else 0

    @property
    def later(self) -> int:
        """Those whose gate opens at a token of the answer."""
        return sum(self.opens[1:])


def _opening(value: Streaming, tag: str, draw: Any) -> tuple[Any, ...]:
    if not value.opens:
        return ()
    with draw.canvas(3.0) as (_, (axes,), buffer):
        axes.bar(range(len(value.opens)), value.opens, color=draw.BLUE)
        axes.set_xlabel("token of the answer, 0 is the prompt")
        axes.set_ylabel("harmful records")
        draw.whole_numbers(axes.xaxis)
        axes.grid(color=draw.GREY, alpha=0.3, lw=0.6)
    words = f"{value.at_prompt} at the prompt, {value.later} later"
    caption = f"Harmful calibration records by the token at which the gate opens first: {words}."
    return (draw.finished(f"{tag}-opens", "Streaming guard: when the gate opens", caption, words, buffer),)


SECTIONS = (Section.beside(__file__, "streaming", Streaming, _opening),)
