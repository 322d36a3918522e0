"""What CAST learns from: moments of text states by layer, and how alike to the condition calibration states are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..artifact.sites import Site
from ..errors import UsageError
from ..protocols import Example, StateSource
from ..statistics.moments import Moments, top_directions
from ..statistics.threads import one_thread
from .choices import Condition
from .ops import similarity


@dataclass
class ConditionStatistics:
    """What one pass over the text of the fit split and one over calibration records leave behind.

    Attributes:
        harmful, harmless: moments of last-position states of fit text, by layer.
        similarities: of calibration records, by kind of condition vector and layer; one number a record.
        labels: which of these records are harmful.
    """

    harmful: dict[int, Moments]
    harmless: dict[int, Moments]
    similarities: dict[tuple[Condition, int], list[float]] = field(default_factory=dict)
    labels: list[bool] = field(default_factory=list)

    def difference(self, layer: int) -> Float[Tensor, " d_model"]:
        """v: mean state of harmful less that of harmless text."""
        return self.harmful[layer].mean - self.harmless[layer].mean

    @one_thread(blas=False)
    def condition(self, layer: int, kind: Condition) -> Float[Tensor, " d_model"]:
        """c, of length 1, towards harmful text."""
        towards = self.difference(layer)
        if kind == "mean":
            mean: Tensor = towards / towards.norm()
            return mean
        centre = (self.harmful[layer].mean + self.harmless[layer].mean) / 2
        spread = self.harmful[layer].second_moment(centre) + self.harmless[layer].second_moment(centre)
        return top_directions(spread, 1, towards)[0][:, 0]


@dataclass(frozen=True)
class Chosen:
    """A condition: σ·similarity > θ.

    Attributes:
        sense: σ, 1 or −1.
        threshold: θ.
        f1: of "harmful" on calibration records.
    """

    sense: float
    threshold: float
    f1: float


def best_f1(scores: Float[np.ndarray, " records"], harmful: Bool[np.ndarray, " records"]) -> Chosen:
    """The sense and threshold of the highest F1; of equal ones the first found, from the widest gate on.

    Thresholds lie halfway between neighbouring scores.
    """
    found = Chosen(1.0, float(scores.max()), 0.0)  # never open, where all scores are equal
    for sense in (1.0, -1.0):
        order = np.argsort(-sense * scores, kind="stable")
        ranked, hits = sense * scores[order], np.cumsum(harmful[order])
        f1 = 2 * hits / (np.arange(1, len(ranked) + 1) + harmful.sum())
        f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores are on one side
        f1 = f1[:-1]  # a gate that is always open is no condition
        if len(f1) and f1.max() > found.f1:
            at = len(f1) - 1 - int(np.argmax(f1[::-1]))
            found = Chosen(sense, float(ranked[at] + ranked[at + 1]) / 2, float(f1[at]))
    return found


def texts_of(records: Sequence[Example]) -> list[Example]:
    """The text records of the fit split, from which both vectors are taken.

    Raises:
        UsageError: there are none of a label.
    """
    return _labelled([one for one in records if one.split == "fit" and one.carrier == "text"], "fit split", "text ")


def calibration_of(records: Sequence[Example]) -> list[Example]:
    """The records of the calibration split, on which the condition is chosen.

    Raises:
        UsageError: there are none of a label.
    """
    return _labelled([one for one in records if one.split == "calibration"], "calibration split", "")


def _labelled(found: list[Example], where: str, kind: str) -> list[Example]:
    for label in ("harmful", "harmless"):
        if not any(record.label == label for record in found):
            raise UsageError(
                f"The {where} holds no {label} {kind}record.",
                "CAST takes its vectors from fit text and its condition from calibration records, of both labels.",
            )
    return found


def collect(model: StateSource, records: Sequence[Example], layers: Sequence[int]) -> ConditionStatistics:
    """Stream the statistics of all ``layers``; memory grows by one number a calibration record, layer and kind."""
    texts, calibration = texts_of(records), calibration_of(records)
    width, sites = model.base.d_model, {layer: Site.block(layer) for layer in layers}
    harmful_states, harmless_states = ({layer: Moments(width) for layer in layers} for _ in range(2))
    found = ConditionStatistics(harmful_states, harmless_states)
    for batch, states in model.states([(record,) for record in texts], list(sites.values())):
        harmful = torch.tensor([record.label == "harmful" for record in batch])
        for layer, site in sites.items():
            found.harmful[layer].update(states[site][harmful])
            found.harmless[layer].update(states[site][~harmful])
    vectors = {(kind, layer): found.condition(layer, kind) for kind in get_args(Condition) for layer in layers}
    found.similarities = {key: [] for key in vectors}
    for batch, states in model.states([(record,) for record in calibration], list(sites.values())):
        found.labels += [record.label == "harmful" for record in batch]
        with one_thread(blas=False):
            for (kind, layer), vector in vectors.items():
                alike = similarity(states[sites[layer]].to("cpu", torch.float64), vector)
                found.similarities[kind, layer] += alike.tolist()
    return found
