"""``training.json``: the loss of an alignment training, step by step; a closed form has no steps, only circumstances.

``alignment.json``: how near pictures lie to their captions per layer, before and after. Both are written by
:mod:`safetykit.toolkit.alignment`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ..artifact.manifest import Strict
from ..section import LayerName, Section

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


class Nearness(Strict):
    """Mean cosines of picture and text states; ``centred`` without the mean of each side."""

    caption: float
    unrelated: float
    centred_caption: float
    centred_unrelated: float


class Change(Strict):
    """One layer."""

    before: Nearness
    after: Nearness


Alignment = dict[LayerName, Change]


def _losses(value: Training, tag: str, draw: Any) -> tuple[Any, ...]:
    if len(value.steps) < 2:
        return ()
    with draw.canvas(1.0 + 1.3 * len(value.terms), len(value.terms)) as (_, panels, buffer):
        for at, (axes, (name, found)) in enumerate(zip(panels, value.terms.items(), strict=True)):
            width = min(_WINDOW, len(found))
            smooth = np.convolve(found, np.ones(width) / width, mode="valid")
            axes.plot(value.steps, found, color=draw.GREY, lw=0.6, alpha=0.7)
            axes.plot(value.steps[width - 1 :], smooth, color=draw.CYCLE[at % len(draw.CYCLE)], lw=1.6)
            axes.set_title(name, loc="left")
            axes.set_ylabel("loss")
            axes.grid(color=draw.GREY, alpha=0.3, lw=0.6)
        panels[-1].set_xlabel("step")
    words = "; ".join(f"{name} from {first:.3g} to {last:.3g}" for name, (first, last) in value.ends.items())
    caption = f"Grey: every step; coloured: the mean of {_WINDOW}. First and last tenth: {words}."
    return (draw.finished(f"{tag}-losses", "Training: losses", caption, words, buffer),)


def _cosines(value: Alignment, tag: str, draw: Any) -> tuple[Any, ...]:
    layers = sorted(value, key=int)
    with draw.canvas(5.6, 2) as (_, panels, buffer):
        for axes, prefix, title in zip(
            panels, ("", "centred_"), ("as they are", "without the mean of each side"), strict=True
        ):
            for moment, colour in (("before", draw.VERMILION), ("after", draw.BLUE)):
                for name, style in (("caption", "-o"), ("unrelated", ":s")):
                    found = [getattr(getattr(value[layer], moment), prefix + name) for layer in layers]
                    axes.plot(
                        [int(layer) for layer in layers],
                        found,
                        style,
                        color=colour,
                        ms=4,
                        lw=1.4,
                        label=f"{name}, {moment}",
                    )
            axes.set_title(title, loc="left")
            axes.set_ylabel("cosine")
            draw.whole_numbers(axes.xaxis)
            axes.grid(color=draw.GREY, alpha=0.3, lw=0.6)
        panels[-1].set_xlabel("decoder layer")
        panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    words = "; ".join(
        f"layer {layer}: {value[layer].before.centred_caption:.2f} to {value[layer].after.centred_caption:.2f}"
        for layer in layers
    )
    caption = f"Mean states of image tokens against those of captions. Own caption, centred, before to after: {words}."
    return (draw.finished(f"{tag}-cosines", "Pictures near their captions", caption, words, buffer),)


SECTIONS = (
    Section.beside(__file__, "training", Training, _losses),
    Section.beside(__file__, "alignment", Alignment, _cosines),
)
