"""What detectors are fitted on: last-position states of records, read once and kept.

A detector needs one vector of width d_model per record and place, so these are kept (a thousand records of width
4096 are 16 MB), in files that are mapped into memory, and every cross-validation, learning curve and comparison works
on them without the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UsageError
from ..protocols import Blocks, BranchSource, Example, Place
from .rows import Rows, mapped

_CATEGORIES = 3  # of each label, at least, so that folds can hold out whole ones


@dataclass(frozen=True)
class Features:
    """Records, in the order of their ids, and their states by place.

    Attributes:
        records: what the rows belong to.
        states: place → [all, d_model], float32; of several blocks as many widths.
        index: the rows of the states that belong to the records, in their order; None where all do.
    """

    records: tuple[Example, ...]
    states: Mapping[Place, Float[Tensor, "all d_model"]]
    index: Int[np.ndarray, " records"] | None = None

    @classmethod
    def read(cls, source: BranchSource, records: Sequence[Example], places: Sequence[Place]) -> Features:
        """Run ``records`` through ``source`` once.

        Raises:
            UsageError: there are no records, or a place does not exist.
        """
        ordered = tuple(sorted(records, key=lambda record: record.id))
        row = {record.id: at for at, record in enumerate(ordered)}
        states = {place: mapped(len(ordered), _blocks(place) * source.base.d_model) for place in places}
        for batch, found in source.branch_states(ordered, list(places)):
            at = [row[record.id] for record in batch]
            for place in places:
                if not torch.isfinite(found[place]).all():
                    raise UsageError(
                        f"States of {name_of(place)} hold NaN or infinity.", "Run the model in float32 or bfloat16."
                    )
                states[place][at] = found[place]
        return cls(ordered, states)

    def take(self, keep: Bool[np.ndarray, " records"] | Int[np.ndarray, " kept"]) -> Features:
        """The rows that ``keep`` selects, by mask or by index."""
        rows = np.arange(len(self.records))[keep]
        index = rows if self.index is None else self.index[rows]
        return Features(tuple(self.records[row] for row in rows), self.states, index)

    def with_states(self, other: Features) -> Features:
        """Also the states that were read of the same records at other places."""
        return Features(self.records, {**self.states, **other.states}, self.index)

    def sample(self, fraction: float, seed: int) -> Features:
        """See :func:`drawn`."""
        return self if fraction == 1 else self.take(drawn(self.records, fraction, seed))

    def where(self, **wanted: str) -> Features:
        """The records whose attributes (split, label, carrier, category) have these values."""

        def fits(record: Example) -> bool:
            return all(getattr(record, name) == value for name, value in wanted.items())

        return self.take(np.array([fits(record) for record in self.records], bool))

    @property
    def harmful(self) -> Bool[np.ndarray, " records"]:
        """True where the label is harmful."""
        return np.array([record.label == "harmful" for record in self.records], bool)

    @property
    def groups(self) -> Int[np.ndarray, " records"]:
        """Records that must stay on one side of a cross-validation share a number.

        Categories where each label has enough of them, pairs otherwise.
        """
        harmful = self.harmful
        categories = np.array([record.category for record in self.records])
        if all(len(set(categories[rows]) - {""}) >= _CATEGORIES for rows in (harmful, ~harmful)):
            keys = categories.tolist()
        else:
            keys = [min(record.id, record.pair) if record.pair else record.id for record in self.records]
        known: dict[str, int] = {}
        return np.array([known.setdefault(key, len(known)) for key in keys], int)

    def rows(self, place: Place) -> Rows:
        """The states of one place."""
        return Rows(self.states[place].numpy(), self.index)


def drawn(records: Sequence[Example], fraction: float, seed: int) -> Int[np.ndarray, " drawn"]:
    """Rows of this share of the records, drawn within each carrier and label, at least one of each; in their order."""
    random = np.random.default_rng(seed)
    strata: dict[tuple[str, str], list[int]] = {}
    for row, record in enumerate(records):
        strata.setdefault((record.carrier, record.label), []).append(row)
    chosen = [random.permutation(rows)[: max(1, round(fraction * len(rows)))] for _, rows in sorted(strata.items())]
    return np.sort(np.concatenate(chosen))


def _blocks(place: Place) -> int:
    return len(place.layers) if isinstance(place, Blocks) else 1


def name_of(place: Place) -> str:
    """A place as people read it."""
    if isinstance(place, Blocks):
        return ", ".join(map(str, place.sites))
    return f"the second pass {place[0]} ← {place[1]}" if isinstance(place, tuple) else str(place)
