"""What NullSteer learns from: second moments of harmless and harmful states, and means of refusals.

Harmful states are those of prompts' last positions. Harmless ones are too, as in the papers, or of ``tokens``: up to 64
positions of each record, of its prompt and of its response, since the map acts on all of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..artifact.sites import Site
from ..errors import UsageError
from ..protocols import Example, StateSource
from ..statistics.moments import Mean, Moments
from ..statistics.tokens import TokenBatch, TokenSource, pick
from .choices import Harmful, Harmless, Towards

_TOKENS = 64  # harmless positions of a record that are kept, at most


class Source(StateSource, TokenSource, Protocol):
    """A model whose hidden states can be streamed, of last positions and of all."""


@dataclass
class NullStatistics:
    """What one pass over the fit split leaves behind.

    Attributes:
        harmless: per site, moments of harmless states, of records of all carriers.
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
        together = Mean(len(found[0].total))
        for mean in found:
            together.merge(mean)
        return together.value - self.calm[layer].value

    def categories(self, site: Site, harmful: Harmful) -> dict[str, Mean]:
        """Count and sum of the harmful records that must move, by category."""
        found: dict[str, Mean] = {}
        for (at, category, kind), mean in sorted(self.kinds.items(), key=lambda item: item[0][1:]):
            if at == site and kind in kinds_of(harmful):
                found.setdefault(category, Mean(len(mean.total))).merge(mean)
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
    model: Source, records: Sequence[Example], sites: Sequence[Site], moved_to: set[str], harmless: Harmless = "last"
) -> NullStatistics:
    """Stream the statistics of all ``sites`` and of their blocks; memory does not grow with the number of records.

    Args:
        records: of the fit split.
        moved_to: ids of the harmful texts whose mean state is moved to.
        harmless: which harmless states must stay.
    """
    width, layers = model.base.d_model, sorted({site.layer for site in sites if site.layer is not None})
    found = NullStatistics()
    for site in sites:
        found.harmless[site] = Moments(width)
        for kind in kinds_of("both"):
            found.harmful[site, kind] = Moments(width)
    for layer in layers:
        found.calm[layer] = Mean(width)
    read = list(dict.fromkeys([*sites, *map(Site.block, layers)]))
    for batch, states in model.states([(record,) for record in records], read):
        calm = [row for row, record in enumerate(batch) if (record.label, record.carrier) == ("harmless", "text")]
        still = [row for row, record in enumerate(batch) if record.label == "harmless" and harmless == "last"]
        groups: dict[tuple[str, str], list[int]] = {}
        refused: dict[str, list[int]] = {}
        for row, record in enumerate(batch):
            if record.label == "harmful":
                groups.setdefault((record.category, kind_of(record)), []).append(row)
            if record.id in moved_to:
                refused.setdefault(record.category, []).append(row)
        for site in sites:
            found.harmless[site].update(states[site][still])
            for kind in kinds_of("both"):
                rows = sorted(row for (_, other), some in groups.items() if other == kind for row in some)
                found.harmful[site, kind].update(states[site][rows])
            for (category, kind), rows in groups.items():
                found.kinds.setdefault((site, category, kind), Mean(width)).update(states[site][rows])
        for layer in layers:
            block = states[Site.block(layer)]
            found.calm[layer].update(block[calm])
            for category, rows in refused.items():
                found.refused.setdefault((layer, category), Mean(width)).update(block[rows])
    if harmless == "tokens":
        _add_tokens(found, model, [record for record in records if record.label == "harmless"], sites)
    return found


def _add_tokens(found: NullStatistics, model: Source, records: Sequence[Example], sites: Sequence[Site]) -> None:
    def some(batch: TokenBatch) -> dict[Site, Float[Tensor, "picked d_model"]]:
        ids = "\0".join(record.id for record in batch.records)  # the draws depend on the batch alone
        generator = torch.Generator().manual_seed(zlib.crc32(ids.encode()))
        start, kept = generator.get_state(), {}
        for site in sites:  # the same tokens at every site
            generator.set_state(start)
            kept[site] = pick(batch.states[site], batch.visual | batch.textual, _TOKENS, generator)
        return kept

    for states in model.token_states(records, sites, some, with_response=True):
        for site in sites:
            found.harmless[site].update(states[site])
