"""What a diagnosis costs, and how to fit it into a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...adapters.errors import UsageError
from .blocking import windows
from .pairs import POSITIONS
from .terms import KINDS, Modality

LEAST_PAIRS, LEAST_RECORDS, LEAST_NEURONS = 8, 40, 4


@dataclass(frozen=True)
class Plan:
    """How much is done; every count is an upper bound that the records may not reach.

    Attributes:
        pairs: per modality.
        neurons: verified per modality, besides a quarter as many drawn at random; 0 leaves neurons out.
        blocked: harmful records answered per window of skipped layers.
        states: records whose states are compared.
    """

    depth: int
    pairs: Mapping[Modality, int]
    neurons: int
    blocked: int
    states: int
    batch_size: int
    max_new_tokens: int

    @property
    def drawn(self) -> int:
        """Neurons drawn at random for comparison."""
        return math.ceil(self.neurons / 4)

    def batches(self, modality: Modality) -> int:
        """Batches of pairs."""
        return math.ceil(self.pairs.get(modality, 0) / self.batch_size)

    @property
    def rows(self) -> int:
        """Rows of a forward pass: both halves of the pairs."""
        return 2 * self.batch_size

    @property
    def patched_passes(self) -> int:
        """Forward passes of mediation and of neurons."""
        total = 0
        for modality in self.pairs:
            each = 1 + len(POSITIONS[modality]) * len(KINDS) * self.depth
            if self.neurons:
                each += 2 + self.neurons + self.drawn  # attribution, unpatched, patched
            total += self.batches(modality) * each
        return total

    @property
    def patched_work(self) -> float:
        """What :attr:`patched_passes` cost, in whole passes, at most: a pass begins at the layer of its patch.

        A batch is run twice more, as far as the last layer (:class:`.resuming.Resumed`).
        """
        total = 0.0
        for modality in self.pairs:
            each = 3 + len(POSITIONS[modality]) * len(KINDS) * (self.depth + 1) / 2
            if self.neurons:
                each += 4 + self.neurons + self.drawn
            total += self.batches(modality) * each
        return total

    @property
    def state_passes(self) -> int:
        return math.ceil(self.states / self.rows)

    @property
    def generation_passes(self) -> int:
        """Decoding steps of window blocking; prompts count as one step."""
        return len(windows(self.depth)) * math.ceil(self.blocked / self.rows) * self.max_new_tokens

    @property
    def forward_passes(self) -> int:
        """Forward passes over a batch of at most :attr:`rows` rows; decoding steps count one each."""
        return self.patched_passes + self.state_passes + self.generation_passes

    @property
    def backward_passes(self) -> int:
        return sum(self.batches(modality) for modality in self.pairs) if self.neurons else 0

    def shrunk(self, share: float) -> Plan:
        """The plan with ``share`` of its pairs, neurons and answered records, but not less than is worth measuring."""

        def part(count: int, least: int) -> int:
            return max(min(count, least), int(count * share))

        return replace(
            self,
            pairs={modality: part(count, LEAST_PAIRS) for modality, count in self.pairs.items()},
            neurons=part(self.neurons, LEAST_NEURONS),
            blocked=part(self.blocked, LEAST_RECORDS),
        )

    def within(self, budget: int | None) -> Plan:
        """The largest plan of at most ``budget`` forward passes.

        Raises:
            UsageError: not even the smallest sensible plan fits.
        """
        if budget is None or self.forward_passes <= budget:
            return self
        for percent in range(95, -1, -5):
            smaller = self.shrunk(percent / 100)
            if smaller.forward_passes <= budget:
                return smaller
        raise UsageError(
            f"A diagnosis of this model takes at least {smaller.forward_passes} forward passes, more than {budget}.",
            f"Pass --budget {smaller.forward_passes} or more.",
        )

    def describe(self) -> str:
        """One line for people."""
        pairs = " and ".join(f"{count} {modality}" for modality, count in self.pairs.items() if count)
        return (
            f"{self.forward_passes} forward and {self.backward_passes} backward passes of up to {self.rows} rows: "
            f"{pairs} pairs, {self.neurons} neurons, {self.blocked} answered records, {self.states} states"
        )
