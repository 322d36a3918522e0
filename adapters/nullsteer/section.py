"""``nullsteer.json``: how far harmful and harmless states are moved, per layer.

Written by :func:`safetykit.adapters.nullsteer.nullsteer.solve`, which says what each figure is.
"""

from __future__ import annotations

from ..artifact.manifest import Strict
from ..section import LayerName, Section


class Layer(Strict):
    """One adapted layer."""

    site: str
    dropped: int | None = None
    kept: float | None = None
    rank: int
    refusal: float
    harmful: float
    harmless: float


class Moves(Strict):
    """The attachment."""

    layers: dict[LayerName, Layer]


SECTIONS = (Section.beside(__file__, "nullsteer", Moves),)
