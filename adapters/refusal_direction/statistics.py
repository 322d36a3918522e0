"""What the refusal direction is learnt from: means of last-position states of text, by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..artifact.sites import Site
from ..errors import UsageError
from ..protocols import Example, StateSource
from ..statistics.moments import Mean


@dataclass(frozen=True)
class Means:
    """Means of last-position states of text, by layer."""

    harmful: dict[int, Mean]
    harmless: dict[int, Mean]


def texts_of(records: Sequence[Example]) -> list[Example]:
    """The text records of the fit split.

    Raises:
        UsageError: there are none of a label.
    """
    texts = [record for record in records if record.split == "fit" and record.carrier == "text"]
    for label in ("harmful", "harmless"):
        if not any(record.label == label for record in texts):
            raise UsageError(
                f"The fit split holds no {label} text record.", "The direction leads from harmless to harmful text."
            )
    return texts


def collect(model: StateSource, texts: Sequence[Example], layers: Sequence[int]) -> Means:
    """Means of the states of all ``layers``."""
    width = model.base.d_model
    found = Means(*({layer: Mean(width) for layer in layers} for _ in range(2)))
    for batch, states in model.states([(record,) for record in texts], [Site.block(layer) for layer in layers]):
        harmful = torch.tensor([record.label == "harmful" for record in batch])
        for layer in layers:
            found.harmful[layer].update(states[Site.block(layer)][harmful])
            found.harmless[layer].update(states[Site.block(layer)][~harmful])
    return found
