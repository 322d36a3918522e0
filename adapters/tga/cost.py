"""What TGA costs, known before it starts: passes over all captioned pictures, forward and backward ones alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import UsageError
from ..settings import spell
from .settings import TGA

_MEASURED = 3  # forward passes: states of pictures before and after, and of their captions


@dataclass(frozen=True)
class Cost:
    """Passes over all captioned pictures.

    Attributes:
        forward, backward: how many; a row of a batch is a picture.
        pictures: how many there are.
    """

    forward: float
    backward: float
    pictures: int

    def __str__(self) -> str:
        return f"{self.forward:.1f} forward and {self.backward:.1f} backward passes over {self.pictures} pictures"


def cost(settings: TGA, counts: Mapping[str, int]) -> Cost:
    """What a fit costs at most, by the ``counts`` of its data."""
    pictures = counts["captions"]
    if settings.variant == "closed-form":
        return Cost(_MEASURED, 0, pictures)
    share = settings.steps * settings.accumulate * settings.batch_size / pictures
    return Cost(_MEASURED + share * _forward(settings), share, pictures)


def within(settings: TGA, counts: Mapping[str, int]) -> TGA:
    """The settings with as many steps as their budget allows.

    Raises:
        UsageError: it does not allow one.
    """
    if settings.budget is None:
        return settings
    pictures = counts["captions"]
    step = settings.accumulate * settings.batch_size * (1 + _forward(settings)) / pictures
    steps = math.floor((settings.budget - _MEASURED) / step + 1e-9)
    if steps < 1:
        least = math.ceil(10 * (_MEASURED + step)) / 10
        raise UsageError(
            f"A step of TGA on {pictures} pictures takes {least:g} passes over them with what is measured before and "
            f"after, more than {settings.budget:g}.",
            f"Pass {spell(TGA, 'budget')} {least:g} or more, or smaller batches.",
        )
    return settings if steps >= settings.steps else settings.but(steps=steps)


def _forward(settings: TGA) -> int:
    """Forward passes of a row: its picture, and its twin in text where a term compares with it."""
    return 2 if settings.request_weight or settings.opening_weight else 1
