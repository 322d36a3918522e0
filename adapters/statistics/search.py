"""Where a detector reads: any layer may be chosen, from coarse to fine, on a part of the records.

The state of a pair (s, f) costs blocks s+1…L−1 of a forward pass, and there are L(L−1)/2 of them. So pairs on a coarse
grid of layers are tried first, then the neighbours of the best one at half the distance, and so on down to the
layers next to it; and on a part of the records only (ours): a learning curve is flat long before its end, and what is
compared are places, on the same records. The chosen place is then fitted on all records. Few layers or few records
are compared on all records: there is little to save, and a part would choose by chance among pairs that differ little.

States of blocks in the normal pass come with it for nothing, so all of them are tried at once.

The attachment ``detector`` says of each place tried what was found on that part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from ..artifact.sites import Site
from ..protocols import BranchSource, Example, Place
from .detector import Features, drawn
from .detector_report import Detector, Fitted, preferred, row_of
from .probe import balanced_loss

SHARE = 0.04  # of the records
LEAST, MOST = 240, 2000  # records of the part
_WHOLE = 0.6  # share from which on a part saves nothing
_SHALLOW = 12  # layers of a decoder small enough for all its pairs on all records
_COARSE = 5  # layers of the first grid along one axis


@dataclass(frozen=True)
class Searched:
    """What a search leaves.

    Attributes:
        place: the chosen one.
        rows: the places tried, as rows of the attachment's ``layers``.
        part: how many records of each split they were tried on.
        features: what was read of all records; None where a part was.
    """

    place: Place
    rows: list[dict[str, Any]]
    part: dict[str, int]
    features: Features | None


def part_of(records: Sequence[Example], seed: int, depth: int) -> list[Example]:
    """The records that places are compared on, drawn within split, carrier and label; all, where they are few.

    Args:
        depth: layers of the decoder; of a shallow one all records are used, too.
    """
    ordered = sorted(records, key=lambda record: record.id)
    share = min(max(LEAST, SHARE * len(ordered)), MOST) / len(ordered)
    if share >= _WHOLE or depth <= _SHALLOW:
        return ordered
    splits = {split: [record for record in ordered if record.split == split] for split in ("fit", "calibration")}
    return [members[row] for members in splits.values() for row in drawn(members, share, seed)]


class Grid:
    """Places by the layers in their names, on a grid that grows finer.

    Args:
        places: all candidates; sites of the normal pass lie on the first grid, every one.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = {layers_of(place): place for place in places}
        axes = [sorted(set(values)) for values in zip(*self._places, strict=True)]
        longest = max(len(axis) for axis in axes)
        self.step = 1  # distance between neighbours on the first grid
        while any(isinstance(place, tuple) for place in places) and longest / self.step > _COARSE:
            self.step *= 2
        self._axes = axes

    def coarse(self) -> list[Place]:
        """The first grid."""
        thin = [axis[self.step // 2 :: self.step] if len(axis) > 1 else axis for axis in self._axes]
        return [self._places[layers] for layers in product(*thin) if layers in self._places]

    def finer(self) -> Iterator[int]:
        """Distances of the neighbours to look at, one after the other."""
        step = self.step // 2
        while step:
            yield step
            step //= 2

    def around(self, place: Place, step: int) -> list[Place]:
        """Neighbours in all directions."""
        moved = product(*((layer - step, layer, layer + step) for layer in layers_of(place)))
        return [self._places[layers] for layers in moved if layers in self._places]


class Search:
    """One search.

    Args:
        detector: how a detector is fitted at a place.
        source: the model.
        records: of both splits, all that the fit uses.
        beside: ``(places) -> places``, whose states are read with them.
        spared: calibration records have no say in the choice: a budget is to be kept on them.
    """

    def __init__(
        self,
        detector: Detector,
        source: BranchSource,
        records: Sequence[Example],
        beside: Callable[[Sequence[Place]], list[Place]],
        spared: bool = False,
    ) -> None:
        self._detector, self._source, self._beside, self._spared = detector, source, beside, spared
        self._part = part_of(records, detector.seed, source.base.n_layers)
        self._whole = len(self._part) == len(records)
        self._read: Features | None = None
        self._tried: dict[Place, tuple[Fitted, float]] = {}
        self._rows: list[dict[str, Any]] = []

    def run(self, places: Sequence[Place]) -> Searched:
        """Choose among ``places``."""
        grid = Grid(places)
        self._attempt(grid.coarse())
        for step in grid.finer():
            self._attempt(grid.around(self._leader(), step))
        return Searched(
            self._leader(),
            self._rows,
            {split: sum(record.split == split for record in self._part) for split in ("fit", "calibration")},
            self._read if self._whole else None,
        )

    def _attempt(self, places: Sequence[Place]) -> None:
        """Fit at those places that have not been tried."""
        new = [place for place in places if place not in self._tried]
        if not new:
            return
        features = Features.read(self._source, self._part, list(dict.fromkeys([*new, *self._beside(new)])))
        fit, calibration = features.where(split="fit"), features.where(split="calibration")

        def tried(place: Place) -> tuple[Fitted, float, dict[str, Any]]:
            found = self._detector.fit(place, fit, calibration)
            loss = balanced_loss(found.risk(calibration), calibration.harmful)
            return found, loss, {**row_of(found, calibration), "calibration_loss": loss}

        for place, (found, loss, row) in self._source.deal(new, tried):
            self._tried[place] = found, loss
            self._rows.append(row)
        if self._whole:
            self._read = features if self._read is None else self._read.with_states(features)

    def _leader(self) -> Place:
        harmful = np.array([record.label == "harmful" for record in self._part if record.split == "fit"])
        found, losses = zip(*self._tried.values(), strict=True)
        if self._spared:
            losses = tuple(item.probe.loss or 0.0 for item in found)
        place: Place = found[preferred(found, losses, harmful)].place
        return place


def layers_of(place: Place) -> tuple[int, ...]:
    """The layers in a place's name."""
    if isinstance(place, tuple):
        return place
    assert isinstance(place, Site)  # several blocks are given, not chosen
    assert place.layer is not None  # a place without a layer is the only one, and nothing is chosen
    return (place.layer,)
