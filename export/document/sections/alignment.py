"""``alignment.json``: how near pictures lie to their captions per layer, before and after.

Written by :mod:`safetykit.toolkit.alignment.measure`.
"""

from __future__ import annotations

from ....adapters.artifact.manifest import Strict
from ....adapters.section import LayerName, Section
from ..axes import whole_numbers
from ..plots import BLUE, GREY, VERMILION, Plot, canvas, finished


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


def _cosines(value: Alignment, tag: str) -> tuple[Plot, ...]:
    layers = sorted(value, key=int)
    with canvas(5.6, 2) as (_, panels, buffer):
        for axes, prefix, title in zip(
            panels, ("", "centred_"), ("as they are", "without the mean of each side"), strict=True
        ):
            for moment, colour in (("before", VERMILION), ("after", BLUE)):
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
            whole_numbers(axes.xaxis)
            axes.grid(color=GREY, alpha=0.3, lw=0.6)
        panels[-1].set_xlabel("decoder layer")
        panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    words = "; ".join(
        f"layer {layer}: {value[layer].before.centred_caption:.2f} to {value[layer].after.centred_caption:.2f}"
        for layer in layers
    )
    caption = f"Mean states of image tokens against those of captions. Own caption, centred, before to after: {words}."
    return (finished(f"{tag}-cosines", "Pictures near their captions", caption, words, buffer),)


ALIGNMENT = Section("alignment", Alignment, lambda value, tag, draw: _cosines(value, tag))
