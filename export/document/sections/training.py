"""``training.json``: the loss of an alignment training, step by step.

Written by :mod:`safetykit.toolkit.alignment.trainer`; a closed form has no steps, only its circumstances.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from ....adapters.section import Section
from ..plots import CYCLE, GREY, Plot, canvas, finished

_WINDOW = 20  # running means: single steps are noisy


class Training(BaseModel):
    """The attachment; circumstances beyond these are shown as they are.

    Attributes:
        steps, terms: the unweighted terms of the loss at every step; empty for a closed form.
        targets: what was trained.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    steps: list[int] = []
    terms: dict[str, list[float]] = {}
    seconds: float
    device: str
    precision: str
    parameters: int
    targets: list[str]

    @property
    def ends(self) -> dict[str, tuple[float, float]]:
        """Mean of the first and of the last steps of every term."""
        count = max(1, len(self.steps) // 10)
        return {name: (float(np.mean(v[:count])), float(np.mean(v[-count:]))) for name, v in self.terms.items() if v}


def _losses(value: Training, tag: str) -> tuple[Plot, ...]:
    if len(value.steps) < 2:
        return ()
    with canvas(1.0 + 1.3 * len(value.terms), len(value.terms)) as (_, panels, buffer):
        for at, (axes, (name, found)) in enumerate(zip(panels, value.terms.items(), strict=True)):
            width = min(_WINDOW, len(found))
            smooth = np.convolve(found, np.ones(width) / width, mode="valid")
            axes.plot(value.steps, found, color=GREY, lw=0.6, alpha=0.7)
            axes.plot(value.steps[width - 1 :], smooth, color=CYCLE[at % len(CYCLE)], lw=1.6)
            axes.set_title(name, loc="left")
            axes.set_ylabel("loss")
            axes.grid(color=GREY, alpha=0.3, lw=0.6)
        panels[-1].set_xlabel("step")
    words = "; ".join(f"{name} from {first:.3g} to {last:.3g}" for name, (first, last) in value.ends.items())
    caption = f"Grey: every step; coloured: the mean of {_WINDOW}. First and last tenth: {words}."
    return (finished(f"{tag}-losses", "Training: losses", caption, words, buffer),)


TRAINING = Section("training", Training, lambda value, tag, draw: _losses(value, tag))
