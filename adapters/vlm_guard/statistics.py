"""What VLM-Guard learns from: moments of last-position states, per site, and scores of calibration records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..artifact.sites import Site
from ..errors import UsageError
from ..layers import require_text_model
from ..protocols import Example, StateSource
from ..statistics.choices import Direction
from ..statistics.moments import Moments, top_directions
from ..statistics.threads import one_thread

_READINGS: tuple[tuple[Direction, bool], ...] = (("svd", False), ("mean", False), ("svd", True), ("mean", True))
_SHRINKAGE = 0.5  # of Σ: there are about as many harmless fit records as dimensions


@dataclass
class GuardStatistics:
    """What one pass over text pairs and one over calibration records leave behind, per site.

    Attributes:
        differences: moments of h(q⁻) − h(q⁺), over pairs.
        harmful, harmless: moments of all text states of either label.
        pictured: moments of harmless fit records with a picture.
        scores: per reading of the gate's direction (direction, whitened) and site, h_last · w of harmless
            calibration records, one value per record (no activations).
    """

    differences: dict[Site, Moments]
    harmful: dict[Site, Moments]
    harmless: dict[Site, Moments]
    pictured: dict[Site, Moments]
    scores: dict[tuple[Direction, bool], dict[Site, list[float]]] = field(default_factory=dict)

    @one_thread(blas=False)
    def directions(
        self, site: Site, rank: int, direction: Direction = "svd"
    ) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, " d_model"]]:
        """V_m and the singular values of A at ``site``; rows of A as :mod:`.guard` describes.

        Raises:
            UsageError: the fit records do not span ``rank`` directions.
        """
        harmful, harmless = self.harmful[site], self.harmless[site]
        towards = harmful.mean - harmless.mean
        if self.differences[site].count:
            rows = self.differences[site].second_moment()
        else:
            rows = harmful.second_moment(about=harmless.mean) + harmless.second_moment(about=harmful.mean)
        if direction == "svd":
            return top_directions(rows, rank, towards)
        first = towards / towards.norm()
        outside = torch.eye(len(first), dtype=first.dtype) - torch.outer(first, first)
        others, values = top_directions(outside @ rows @ outside, max(rank - 1, 1), towards)
        return torch.cat([first[:, None], others[:, : rank - 1]], dim=1), values

    @one_thread(blas=False)
    def gate(self, site: Site, direction: Direction, whitened: bool) -> Float[Tensor, " d_model"]:
        """w, of length 1: v₁, or v₁ without the modality gap and divided by the spread of harmless states.

        Raises:
            UsageError: ``whitened``, but no harmless fit record has a picture.
        """
        first = self.directions(site, 1, direction)[0][:, 0]
        if not whitened:
            return first
        text, pictured = self.harmless[site], self.pictured[site]
        if not pictured.count:
            raise unpictured()
        gap = pictured.mean - text.mean
        gap = gap / gap.norm()
        covariance = (text.scatter + pictured.scatter) / (text.count + pictured.count)
        eye = torch.eye(len(gap), dtype=gap.dtype)
        keep = eye - torch.outer(gap, gap)
        scale = covariance.trace() / len(gap)
        shrunk = (1 - _SHRINKAGE) * keep @ covariance @ keep + _SHRINKAGE * scale * eye
        gate: Tensor = keep @ torch.linalg.solve(shrunk, keep @ first)
        gate = gate / gate.norm()
        return gate

    def centre(self, site: Site) -> Float[Tensor, " d_model"]:
        """Halfway between the harmful and the harmless text mean."""
        return (self.harmful[site].mean + self.harmless[site].mean) / 2


def unpictured() -> UsageError:
    """The refusal of the whitened gate where no harmless record shows how states with a picture spread."""
    return UsageError(
        "The whitened gate needs harmless records with pictures in the fit split, and there is none.",
        "Add some, or choose --gate calibrated.",
    )


def texts_of(records: Sequence[Example]) -> list[Example]:
    """What directions are learnt from: the text records of the fit split."""
    return [record for record in records if record.split == "fit" and record.carrier == "text"]


def pictured_of(records: Sequence[Example]) -> list[Example]:
    """The harmless records of the fit split that have a picture."""
    return [one for one in records if one.split == "fit" and one.carrier != "text" and one.label == "harmless"]


def require_labels(records: Sequence[Example]) -> None:
    """Refuse records that lack a label.

    Raises:
        UsageError: naming the split and the label.
    """
    texts = texts_of(records)
    for label in ("harmful", "harmless"):
        if not any(record.label == label for record in texts):
            raise UsageError(
                f"The fit split holds no {label} text record.", "VLM-Guard is fitted on harmful and harmless text."
            )
    if not any(record.split == "calibration" and record.label == "harmless" for record in records):
        raise UsageError(
            "The calibration split holds no harmless record.", "Add some: the gate's threshold is set on them."
        )


def all_paired(texts: Sequence[Example], pairs: Sequence[tuple[Example, Example]]) -> bool:
    """Pairs count when every harmful prompt has one; otherwise all records do, each against the other set's mean."""
    return len(pairs) == sum(record.label == "harmful" for record in texts)


def pair_up(records: Sequence[Example]) -> list[tuple[Example, Example]]:
    """(harmful, harmless) pairs among ``records``, by their ``pair`` key; others are left out."""
    harmless = {record.id: record for record in records if record.label == "harmless"}
    pairs = []
    for record in records:
        if record.label == "harmful" and record.pair in harmless:
            pairs.append((record, harmless.pop(record.pair)))
    return pairs


def collect(
    model: StateSource,
    records: Sequence[Example],
    sites: Sequence[Site],
    *,
    text_model: StateSource | None = None,
) -> GuardStatistics:
    """Stream the statistics of all ``sites``; memory does not grow with the number of records.

    Raises:
        UsageError: a needed split or label is empty, or ``text_model`` has another shape.
    """
    source = text_model or model
    require_text_model((source.base.n_layers, source.base.d_model), (model.base.n_layers, model.base.d_model))
    require_labels(records)
    texts = texts_of(records)
    benign = [record for record in records if record.split == "calibration" and record.label == "harmless"]
    pairs = pair_up(texts)
    paired = all_paired(texts, pairs)
    width = model.base.d_model

    def fresh() -> dict[Site, Moments]:
        return {site: Moments(width) for site in sites}

    pictured = [(record,) for record in pictured_of(records)]
    statistics = GuardStatistics(fresh(), fresh(), fresh(), fresh())
    matched = {record.id for pair in pairs for record in pair} if paired else set()
    alone = [(record,) for record in texts if record.id not in matched]
    for batch, states in source.states(pairs, list(sites)) if paired else ():
        harmful = torch.tensor([record.label == "harmful" for record in batch])
        for site in sites:  # units keep (harmful, harmless) together and in this order
            first, second = states[site][harmful].double(), states[site][~harmful].double()
            statistics.harmful[site].update(first)
            statistics.harmless[site].update(second)
            statistics.differences[site].update(first - second)
    for batch, states in source.states(alone, list(sites)) if alone else ():
        harmful = torch.tensor([record.label == "harmful" for record in batch])
        for site in sites:
            statistics.harmful[site].update(states[site][harmful])
            statistics.harmless[site].update(states[site][~harmful])
    for _, states in model.states(pictured, list(sites)) if pictured else ():
        for site in sites:
            statistics.pictured[site].update(states[site])
    readings = [reading for reading in _READINGS if pictured or not reading[1]]
    gates = {(reading, site): statistics.gate(site, *reading) for reading in readings for site in sites}
    statistics.scores = {reading: {site: [] for site in sites} for reading in readings}
    for _, states in model.states([(record,) for record in benign], list(sites)):
        for site in sites:
            for reading in readings:
                with one_thread(blas=False):
                    statistics.scores[reading][site] += (states[site].double() @ gates[reading, site]).tolist()
    return statistics
