"""What detectors are fitted on: last-position states of records, read once and kept.

A detector needs one vector of width d_model per record and place, so these are kept (a thousand records of width
4096 are 16 MB), and every cross-validation, learning curve and comparison works on them without the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import UsageError
from ..protocols import BranchSource, Example, Place

_CATEGORIES = 3  # of each label, at least, so that folds can hold out whole ones


@dataclass(frozen=True)
class Features:
    """Records, in the order of their ids, and their states by place.

    Attributes:
        records: what the rows belong to.
        states: place → [records, d_model], float32.
    """

    records: tuple[Example, ...]
    states: Mapping[Place, Float[Tensor, "records d_model"]]

    @classmethod
    def read(cls, source: BranchSource, records: Sequence[Example], places: Sequence[Place]) -> Features:
        """Run ``records`` through ``source`` once.

        Raises:
            UsageError: there are no records, or a place does not exist.
        """
        ordered = tuple(sorted(records, key=lambda record: record.id))
        row = {record.id: at for at, record in enumerate(ordered)}
        states = {place: torch.empty(len(ordered), source.base.d_model) for place in places}
        for batch, found in source.branch_states(ordered, list(places)):
            at = [row[record.id] for record in batch]
            for place in places:
                states[place][at] = found[place]
        for place, values in states.items():
            if not torch.isfinite(values).all():
                raise UsageError(
                    f"States of {name_of(place)} hold NaN or infinity.", "Run the model in float32 or bfloat16."
                )
        return cls(ordered, states)

    def take(self, keep: Bool[np.ndarray, " records"] | Int[np.ndarray, " kept"]) -> Features:
        """The rows that ``keep`` selects, by mask or by index."""
        rows = np.arange(len(self.records))[keep]
        index = torch.from_numpy(rows)
        return Features(
            tuple(self.records[row] for row in rows), {place: values[index] for place, values in self.states.items()}
        )

    def sample(self, fraction: float, seed: int) -> Features:
        """This share of the records, drawn within each carrier and label, at least one of each.

        Raises:
            UsageError: the fraction is not in (0, 1].
        """
        if not 0 < fraction <= 1:
            raise UsageError(f"A fraction of {fraction} of the fit records cannot be taken.", "Give one in (0, 1].")
        if fraction == 1:
            return self
        random = np.random.default_rng(seed)
        strata: dict[tuple[str, str], list[int]] = {}
        for row, record in enumerate(self.records):
            strata.setdefault((record.carrier, record.label), []).append(row)
        chosen = [random.permutation(rows)[: max(1, round(fraction * len(rows)))] for _, rows in sorted(strata.items())]
        return self.take(np.sort(np.concatenate(chosen)))

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

    def array(self, place: Place) -> Float[np.ndarray, "records d_model"]:
        """The states of one place in float64."""
        return self.states[place].double().numpy()


def name_of(place: Place) -> str:
    """A place as people read it."""
    return f"the second pass {place[0]} ← {place[1]}" if isinstance(place, tuple) else str(place)
