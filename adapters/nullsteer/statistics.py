"""What NullSteer learns from: second moments of harmless and harmful last-position states, and means of refusals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ..artifact.sites import Site
from ..errors import UsageError
from ..protocols import Example, StateSource
from ..statistics.moments import Moments
from ..statistics.threads import one_thread
from .settings import Harmful, Towards


@dataclass
class Mean:
    """Count and sum of a stream of vectors, in float64."""

    total: Float[Tensor, " d_model"]
    count: int = 0

    @one_thread(blas=False)
    def update(self, states: Float[Tensor, "batch d_model"]) -> None:
        """Add a batch of vectors."""
        self.total = self.total + states.to("cpu", torch.float64).sum(0)
        self.count += len(states)

    @property
    def value(self) -> Float[Tensor, " d_model"]:
        """The mean; some vector must have been seen."""
        return self.total / self.count


@dataclass
class NullStatistics:
    """What one pass over the fit split leaves behind.

    Attributes:
        harmless: per site, moments of harmless records of all carriers.
        harmful: per site and carrier kind (``text``, ``picture``), moments of harmful records.
        kinds: per site, category and carrier kind, the mean of harmful records.
        calm: per layer, the mean of harmless text at the block's output.
        refused: per layer and category, the mean at the block's output of the harmful text that is moved towards.
    """

    harmless: dict[Site, Moments] = field(default_factory=dict)
    harmful: dict[tuple[Site, str], Moments] = field(default_factory=dict)
    kinds: dict[tuple[Site, str, str], Mean] = field(default_factory=dict)
    calm: dict[int, Mean] = field(default_factory=dict)
    refused: dict[tuple[int, str], Mean] = field(default_factory=dict)

    def moved(self, site: Site, harmful: Harmful) -> Moments:
        """Moments of the harmful records that must move."""
        together = Moments(len(self.harmless[site].mean))
        for kind in kinds_of(harmful):
            together.merge(self.harmful[site, kind])
        return together

    def refusal(self, layer: int, category: str | None = None) -> Float[Tensor, " d_model"]:
        """The refusal direction: of a category, or of all, which also stands for one without a refused text."""
        found = [mean for (at, name), mean in self.refused.items() if at == layer and category in (None, name)]
        if not found:
            return self.refusal(layer)
        total = torch.stack([mean.total for mean in found]).sum(0)
        return total / sum(mean.count for mean in found) - self.calm[layer].value

    def categories(self, site: Site, harmful: Harmful) -> dict[str, Mean]:
        """Count and sum of the harmful records that must move, by category."""
        found: dict[str, Mean] = {}
        for (at, category, kind), mean in sorted(self.kinds.items(), key=lambda item: item[0][1:]):
            if at == site and kind in kinds_of(harmful):
                known = found.setdefault(category, Mean(torch.zeros_like(mean.total)))
                known.total, known.count = known.total + mean.total, known.count + mean.count
        return found


def kinds_of(harmful: Harmful) -> tuple[str, ...]:
    """Kinds of carriers whose harmful records must move."""
    return ("text",) if harmful == "text" else ("text", "picture")


def kind_of(record: Example) -> str:
    """``text`` or ``picture``."""
    return "text" if record.carrier == "text" else "picture"


def targets(records: Iterable[Example], towards: Towards, outcomes: Mapping[str, str] | None) -> set[str]:
    """Ids of the harmful texts whose mean state is moved to.

    Raises:
        UsageError: ``outcomes`` is missing where it is needed, or the model refuses none of them.
    """
    texts = [record.id for record in records if record.label == "harmful" and record.carrier == "text"]
    if towards == "harmful":
        return set(texts)
    if outcomes is None:
        raise UsageError(
            "Moving towards refused requests needs to know which of them the model refuses.",
            "Pass outcomes, as safetykit.toolkit.workbench.Workbench gives them, or choose --towards harmful.",
        )
    if not (refused := {one for one in texts if outcomes.get(one) == "refused"}):
        raise UsageError(
            "The model refuses no harmful text record of the fit split, so there is no state to move towards.",
            "Choose --towards harmful, or another method: this one has nothing to borrow.",
        )
    return refused


def require_labels(records: Sequence[Example], harmful: Harmful) -> list[Example]:
    """The records of the fit split, if they hold what is asked for.

    Raises:
        UsageError: naming what is missing.
    """
    fit = [record for record in records if record.split == "fit"]
    for label in ("harmful", "harmless"):
        if not any(record.label == label and record.carrier == "text" for record in fit):
            raise UsageError(
                f"The fit split holds no {label} text record.", "NullSteer takes the refusal direction from text."
            )
    if harmful == "both" and not any(record.label == "harmful" and record.carrier != "text" for record in fit):
        raise UsageError("The fit split holds no harmful record with a picture.", "Add some, or choose --harmful text.")
    return fit


def collect(
    model: StateSource, records: Sequence[Example], sites: Sequence[Site], moved_to: set[str]
) -> NullStatistics:
    """Stream the statistics of all ``sites`` and of their blocks; memory does not grow with the number of records.

    Args:
        records: of the fit split.
        moved_to: ids of the harmful texts whose mean state is moved to.
    """
    width, layers = model.base.d_model, sorted({site.layer for site in sites if site.layer is not None})
    found = NullStatistics()
    zeros = torch.zeros(width, dtype=torch.float64)
    for site in sites:
        found.harmless[site] = Moments(width)
        for kind in kinds_of("both"):
            found.harmful[site, kind] = Moments(width)
    for layer in layers:
        found.calm[layer] = Mean(zeros)
    read = list(dict.fromkeys([*sites, *map(Site.block, layers)]))
    for batch, states in model.states([(record,) for record in records], read):
        harmless = torch.tensor([record.label == "harmless" for record in batch])
        calm = harmless & torch.tensor([record.carrier == "text" for record in batch])
        groups: dict[tuple[str, str], list[int]] = {}
        refused: dict[str, list[int]] = {}
        for row, record in enumerate(batch):
            if record.label == "harmful":
                groups.setdefault((record.category, kind_of(record)), []).append(row)
            if record.id in moved_to:
                refused.setdefault(record.category, []).append(row)
        for site in sites:
            found.harmless[site].update(states[site][harmless])
            for kind in kinds_of("both"):
                rows = sorted(row for (_, other), some in groups.items() if other == kind for row in some)
                found.harmful[site, kind].update(states[site][rows])
            for (category, kind), rows in groups.items():
                found.kinds.setdefault((site, category, kind), Mean(zeros)).update(states[site][rows])
        for layer in layers:
            block = states[Site.block(layer)]
            found.calm[layer].update(block[calm])
            for category, rows in refused.items():
                found.refused.setdefault((layer, category), Mean(zeros)).update(block[rows])
    return found
