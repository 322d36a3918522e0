"""``care.json``: spectra, overlap and gains of the safety subspaces, per layer and modality.

Written by :func:`safetykit.adapters.care.care.solve`, which says what each figure is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..artifact.manifest import Strict
from ..section import LayerName, Section

_SHOWN = 64


class Subspace(Strict):
    """One modality's subspace at one layer."""

    eigenvalues: list[float]
    rank: int
    benign: int
    malicious: int
    shrinkage: float | None
    gain: tuple[float, float]


class Layer(Strict):
    """One adapted layer."""

    site: str
    statistics_site: str
    overlap: list[float] | None = None
    visual: Subspace | None = None
    textual: Subspace | None = None

    @property
    def modalities(self) -> dict[str, Subspace]:
        """Those that act here."""
        return {name: found for name in ("visual", "textual") if (found := getattr(self, name)) is not None}

    @property
    def angle(self) -> float | None:
        """Smallest principal angle between the two subspaces, in degrees."""
        return None if not self.overlap else math.degrees(math.acos(min(1.0, max(self.overlap))))


class Subspaces(Strict):
    """The attachment."""

    layers: dict[LayerName, Layer]


def _spectra(value: Subspaces, tag: str, draw: Any) -> tuple[Any, ...]:
    lines = [(layer, name, found) for layer, entry in value.layers.items() for name, found in entry.modalities.items()]
    with draw.canvas(3.6) as (_, (axes,), buffer):
        for at, (layer, name, found) in enumerate(lines):
            values = np.maximum(np.array(found.eigenvalues[:_SHOWN]), 1e-12)
            style = {"color": draw.CYCLE[at % len(draw.CYCLE)], "ls": "-" if name == "visual" else "--", "lw": 1.4}
            axes.plot(np.arange(1, len(values) + 1), values, label=f"{layer} {name}", **style)
            axes.plot(found.rank, values[min(found.rank, len(values)) - 1], "o", ms=5, color=style["color"])
        axes.axhline(1, color=draw.INK, lw=1, ls=":")
        axes.set_yscale("log")
        axes.set_xlabel("direction")
        axes.set_ylabel("malicious over benign variance, λ")
        draw.whole_numbers(axes.xaxis)
        axes.grid(color=draw.GREY, alpha=0.3, lw=0.6)
        axes.legend(ncols=2)
    words = "; ".join(f"layer {layer} {name}: largest λ {found.eigenvalues[0]:.3g}" for layer, name, found in lines)
    caption = (
        "Generalised eigenvalues; the dot is the last direction kept. On the dotted line malicious and benign records "
        f"vary alike. {words}."
    )
    return (draw.finished(f"{tag}-spectra", "Safety subspaces: spectra", caption, words, buffer),)


SECTIONS = (Section.beside(__file__, "care", Subspaces, _spectra),)
