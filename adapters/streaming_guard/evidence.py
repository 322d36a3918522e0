"""What the streaming guard learns from, and the learning: states of answers, chosen anew in each round (:mod:`.guard`).

The attachment ``streaming`` (JSON), of calibration records, each by its highest score::

    budget: the false-positive rate that was asked for; threshold: in log-odds
    false_positive_rate, recall: shares of harmless and of harmful records whose gate opens
    prompt_recall: the same share where only prompts are read, at the threshold of the same budget
    rounds: [{states, loss, auroc (out of fold), calibration_loss, recall}]; the first learnt from prompts alone
    kept: which of them
    carriers: {carrier: {harmful, harmless (counts), recall, false_positive_rate}}
    in_refusals: share of the model's own refusals in which it opens after their first token
    opens: how many harmful records' gates open at the prompt, at the first token, the second, …
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..artifact.sites import Site
from ..budget import Budget, groups_of
from ..errors import UsageError
from ..protocols import Example, TrajectorySource
from ..statistics.budget import Promise, threshold_within
from ..statistics.detector import Features
from ..statistics.probe import Metric, Probe, balanced_loss, fit_probe, threshold_at
from ..statistics.rows import Rows, mapped
from ..statistics.threads import one_thread
from .settings import StreamingGuard


@dataclass(frozen=True)
class Answers:
    """Records, in the order of their ids, and the states of the model's answers to them.

    Attributes:
        records: what was answered.
        sites: whose states stand beside each other.
        values: [states, width], float32; those of a record follow each other, its prompt's first.
        first: row of each record's first state; ``lengths``: how many it has.
        refused: whether the model refused it.
    """

    records: tuple[Example, ...]
    sites: tuple[Site, ...]
    values: Float[Tensor, "states width"]
    first: Int[np.ndarray, " records"]
    lengths: Int[np.ndarray, " records"]
    refused: Bool[np.ndarray, " records"]

    @classmethod
    def follow(
        cls,
        model: TrajectorySource,
        records: Sequence[Example],
        sites: Sequence[Site],
        tokens: int,
        refuses: Callable[[str], bool],
    ) -> Answers:
        """Let the model answer ``records``; ``refuses`` tells whether an answer is a refusal.

        Raises:
            UsageError: a state is not a number.
        """
        ordered = tuple(sorted(records, key=lambda record: record.id))
        row = {record.id: at for at, record in enumerate(ordered)}
        first = np.arange(len(ordered)) * tokens  # what an answer does not fill is never read, nor written to disk
        lengths, refused = np.zeros(len(ordered), np.int64), np.zeros(len(ordered), bool)
        values = mapped(len(ordered) * tokens, len(sites) * model.base.d_model)
        for batch, found in model.trajectories(ordered, sites, tokens):
            rows = zip(batch, found.states, found.lengths.tolist(), found.texts, strict=True)
            for record, states, length, text in rows:
                if not torch.isfinite(states[:length]).all():
                    raise UsageError(
                        f"States of {record.id}'s answer hold NaN or infinity.", "Run the model in float32 or bfloat16."
                    )
                at = row[record.id]
                values[first[at] : first[at] + length] = states[:length]
                lengths[at], refused[at] = length, refuses(text)
        return cls(ordered, tuple(sites), values, first, lengths, refused)

    @property
    def harmful(self) -> Bool[np.ndarray, " records"]:
        """True where the label is harmful."""
        return np.array([record.label == "harmful" for record in self.records], bool)

    def of(self, split: str) -> Int[np.ndarray, " chosen"]:
        """Places of a split's records."""
        return np.array([at for at, record in enumerate(self.records) if record.split == split], int)

    def counted(self, at: int) -> slice:
        """A record's states that may speak for it: of a harmless one all, of a harmful one those in which a push comes
        in time: the prompt's if it is refused anyway, else all but the last."""
        count = int(self.lengths[at])
        if self.records[at].label == "harmful":
            count = 1 if self.refused[at] else max(1, count - 1)
        return slice(self.first[at], self.first[at] + count)

    def refusing(self, at: int) -> slice:
        """The states inside the refusal of a harmful record, which has begun by itself; none of others."""
        inside = self.records[at].label == "harmful" and self.refused[at]
        return slice(self.first[at] + 1, self.first[at] + self.lengths[at]) if inside else slice(0, 0)


@dataclass(frozen=True)
class Evidence:
    """A probe of answers with its threshold.

    Attributes:
        rate: share of harmless calibration records that the threshold was set for.
        rounds: what each round found, for the attachment.
        kept: which one the probe is of.
        promise: what the threshold keeps on new groups, if it was set under a budget.
    """

    probe: Probe
    threshold: float
    rate: float
    rounds: list[dict[str, Any]] = field(default_factory=list)
    kept: int = 0
    promise: Promise | None = None

    def highest(self, answers: Answers, split: str) -> Float[np.ndarray, " records"]:
        """The highest score of each of a split's records."""
        return _highest(self.probe, answers, answers.of(split))


@one_thread()
def learn(guard: StreamingGuard, answers: Answers, budget: Budget | None = None) -> Evidence:
    """Fit on the ``fit`` split in rounds, and keep the round that tells calibration records apart best.

    Args:
        budget: then it is the last round, and the threshold keeps it.
    """
    fit, calibration = answers.of("fit"), answers.of("calibration")
    harmful = answers.harmful
    rows, owners, labels = answers.first[fit], fit, harmful[fit]
    tried: list[tuple[float, Probe, np.ndarray, dict[str, Any]]] = []
    for number in range(guard.rounds + 1):
        part = Features(tuple(answers.records[at] for at in owners), {})
        states = Rows(answers.values.numpy(), rows)
        probe = fit_probe(states, labels, part.groups, Metric.of("hidden"), guard.seed)
        scores = _highest(probe, answers, calibration)
        loss = balanced_loss(scores, harmful[calibration])
        row = {"states": len(rows), "loss": probe.loss, "auroc": probe.auroc, "calibration_loss": loss}
        tried.append((loss, probe, scores, row))
        if number == guard.rounds:
            break
        chosen = _hardest(probe, answers, fit, guard.hardest)
        if np.array_equal(chosen[0], rows):
            break  # nothing would change any more
        rows, owners, labels = chosen
    of = harmful[calibration]
    rate, promise = guard.false_positive_rate, None
    if budget is None:
        kept = min(range(len(tried)), key=lambda at: tried[at][0])
        threshold = threshold_at(tried[kept][2], of, rate)
    else:
        kept = len(tried) - 1
        ids = [answers.records[at].id for at in calibration]
        groups = groups_of(answers.records, budget.budget_by)
        threshold, promise = threshold_within(budget, groups, dict(zip(ids, tried[kept][2].tolist(), strict=True)))
        rate = float((tried[kept][2][~of] > threshold).mean())
    rounds = [
        {**row, "recall": float((scores[of] > threshold_at(scores, of, rate)).mean())} for _, _, scores, row in tried
    ]
    return Evidence(tried[kept][1], threshold, rate, rounds, kept, promise)


def _scores(probe: Probe, answers: Answers, rows: slice) -> Float[np.ndarray, " states"]:
    scores: np.ndarray = probe.risk(answers.values[rows].numpy().astype(np.float64))
    return scores


def _highest(probe: Probe, answers: Answers, places: Sequence[int] | np.ndarray) -> Float[np.ndarray, " records"]:
    return np.array([_scores(probe, answers, answers.counted(at)).max() for at in places])


def _hardest(
    probe: Probe, answers: Answers, places: Int[np.ndarray, " records"], most: int
) -> tuple[Int[np.ndarray, " states"], Int[np.ndarray, " states"], Bool[np.ndarray, " states"]]:
    """The states to learn from next, whose they are, and which are positives: the highest one of a harmful record; up
    to ``most`` of a harmless one, and of a refusal, are negatives."""
    rows, owners, labels = [], [], []
    for at in places:
        positive = answers.records[at].label == "harmful"
        parts = ((answers.counted(at), positive, 1 if positive else most), (answers.refusing(at), False, most))
        for part, label, count in parts:
            if part.start == part.stop:
                continue
            best = np.sort(np.argsort(-_scores(probe, answers, part), kind="stable")[:count])
            rows += (part.start + best).tolist()
            owners += [at] * len(best)
            labels += [label] * len(best)
    return np.array(rows), np.array(owners), np.array(labels)


def measured(found: Evidence, answers: Answers) -> dict[str, Any]:
    """The attachment ``streaming`` but for its budget; see the module's docstring."""
    places = answers.of("calibration")
    harmful = answers.harmful[places]
    opened = found.highest(answers, "calibration") > found.threshold
    first = found.probe.risk(answers.values[answers.first[places]].numpy().astype(np.float64))
    same = float(opened[~harmful].mean())  # the share that the budget came to
    prompts = threshold_at(first, harmful, same)
    carriers = {}
    for name in sorted({answers.records[at].carrier for at in places}):
        mine = np.array([answers.records[at].carrier == name for at in places])
        carriers[name] = {
            "harmful": int((mine & harmful).sum()),
            "harmless": int((mine & ~harmful).sum()),
            "recall": _share(opened[mine & harmful]),
            "false_positive_rate": _share(opened[mine & ~harmful]),
        }
    starts = [
        int(np.argmax(_scores(found.probe, answers, answers.counted(at)) > found.threshold))
        for at in places[opened & harmful]  # the first state above the threshold
    ]
    inside = [part for at in places if (part := answers.refusing(at)).start < part.stop]
    again = [bool((_scores(found.probe, answers, part) > found.threshold).any()) for part in inside]
    return {
        "threshold": found.threshold,
        "false_positive_rate": same,
        "in_refusals": _share(np.array(again)),
        "recall": _share(opened[harmful]),
        "prompt_recall": _share(first[harmful] > prompts),
        "rounds": found.rounds,
        "kept": found.kept,
        "carriers": carriers,
        "opens": np.bincount(starts).tolist() if starts else [],
    }


def _share(hits: np.ndarray) -> float | None:
    return float(hits.mean()) if len(hits) else None
