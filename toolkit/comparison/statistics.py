"""What answers to the same records show: exact paired tests, intervals of differences, and what could have been seen.

Every record is answered with a defence and without it, so a difference is judged by the records whose outcome changes.
Of n records let b lose an outcome and c gain it; the difference of shares is δ = (c − b) / n.

- **McNemar's test**, exact: under no effect b of b + c is binomial with 1/2; p = min(1, 2 P(X ≤ min(b, c))) (McNemar
  1947; exact form as in Fagerland, Lydersen and Laake 2013).
- **Groups and seeds.** McNemar's test is the one in which the sign of each record's change is a coin's. Records of a
  group (what a split keeps together) may go together, so a group has one coin: p = P(|Σ ±dᵢ| ≥ |Σ dᵢ|) with dᵢ the sum
  of a group's changes, exactly (Fisher's randomisation test of pairs). With one record a group it is McNemar's.
  Several seeds are one defence: a record's outcome is the share of its seeds that have it, and b and c are means. The
  test is about these seeds; how far others may lie, their spread tells.
- **Bootstrap interval** of δ: groups are drawn with replacement, 2.5 % and
  97.5 % of the draws' δ are its ends. Where no record changes, the draws know nothing; the ends are then Wilson's for
  0 of the groups, on both sides.
- **Holm's step-down** over the defences that are compared at once (Holm 1979).
- **Smallest difference seen**: the δ at which McNemar's test at level α rejects with probability 0.8, where changes the
  other way are as frequent as they were. The power is summed exactly over the number of changes.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int, Shaped

from ...adapters.errors import UsageError
from ..evaluation.rates import wilson

ALPHA, POWER = 0.05, 0.8
_DRAWS, _SEED = 4000, 0
_CELLS = 2**22  # of a matrix of draws at once


@dataclass(frozen=True)
class Paired:
    """Outcomes of the same records, before and after.

    Attributes:
        n: records; ``groups``: of them, which are drawn together.
        before: share with the outcome without the defence; ``after``: with it.
        lost: records that lose the outcome, on average over seeds; ``gained``: that gain it.
        low, high: 95 % interval of ``after - before``.
        p: of McNemar's exact test, by groups.
        detectable: smallest difference that would be seen with a probability of 0.8 if no record hung on another; None
            if none would.
    """

    n: int
    groups: int
    before: float
    after: float
    lost: float
    gained: float
    low: float
    high: float
    p: float
    detectable: float | None

    @property
    def difference(self) -> float:
        """``after - before``."""
        return self.after - self.before


def paired(
    before: Shaped[np.ndarray, " n"],
    after: Shaped[np.ndarray, " n"],
    groups: Sequence[Hashable],
    *,
    tests: int = 1,
    seeds: int = 1,
) -> Paired:
    """Compare outcomes record by record.

    Args:
        before: whether each record has the outcome, or in which share of its seeds; ``after`` likewise.
        groups: what each record belongs to; records of one are drawn together.
        tests: how many are made at once, among which α is shared for the smallest difference seen.
        seeds: of which shares are.

    Raises:
        UsageError: there is no record.
    """
    before, after = np.asarray(before, float), np.asarray(after, float)
    if not len(before):
        raise UsageError("There is no record to compare.", "Choose another split.")
    counts = np.rint((after - before) * seeds).astype(int)
    lost, gained = (float(np.maximum(one, 0).sum()) / seeds for one in (-counts, counts))
    low, high = bootstrap(counts / seeds, groups)
    return Paired(
        n=len(before),
        groups=len(set(groups)),
        before=float(before.mean()),
        after=float(after.mean()),
        lost=lost,
        gained=gained,
        low=low,
        high=high,
        p=flipped(_by_group(counts, groups)),
        detectable=detectable(len(before), min(lost, gained) / len(before), ALPHA / tests),
    )


def mcnemar(lost: int, gained: int) -> float:
    """p of McNemar's exact test, two-sided; 1 where nothing changes."""
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(lost, gained), lost + gained, 0.5)))


def flipped(changes: Int[np.ndarray, " n"]) -> float:
    """p, two-sided, of a sum of changes whose signs are coins': McNemar's where all are of one size."""
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs(changes[changes != 0]), return_counts=True)
    if len(sizes) < 2:
        return mcnemar(int((changes < 0).sum()), int((changes > 0).sum()))
    chances = np.ones(1)  # of the sums −m, −m + 1, …, m
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        steps = np.zeros(2 * size * count + 1)
        steps[:: 2 * size] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, steps)
    sums = np.arange(len(chances)) - len(chances) // 2
    return min(1.0, float(chances[np.abs(sums) >= abs(int(changes.sum()))].sum()))


def bootstrap(changes: Float[np.ndarray, " n"], groups: Sequence[Hashable]) -> tuple[float, float]:
    """The 95 % interval of the mean change, groups drawn together; the same draws for the same number of groups."""
    totals, sizes = _by_group(changes, groups), _by_group(np.ones(len(groups)), groups)
    if not np.any(changes):
        edge = wilson(0, len(totals))[1]
        return -edge, edge
    drawn = _draws(len(totals))
    low, high = np.quantile((drawn @ totals) / (drawn @ sizes), [0.025, 0.975])
    return float(low), float(high)


def _by_group(values: Shaped[np.ndarray, " n"], groups: Sequence[Hashable]) -> Shaped[np.ndarray, " groups"]:
    """Sums, groups in the order in which they come first."""
    places = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    totals = np.zeros(len(places), values.dtype)
    np.add.at(totals, np.array([places[group] for group in groups]), values)
    return totals


@lru_cache(maxsize=6)
def _draws(groups: int) -> Float[np.ndarray, "draws groups"]:
    """How often each group is drawn."""
    random = np.random.default_rng(_SEED)
    rows = max(1, _CELLS // groups)
    parts = [
        random.multinomial(groups, np.full(groups, 1 / groups), size=min(rows, _DRAWS - start))
        for start in range(0, _DRAWS, rows)
    ]
    return np.concatenate(parts).astype(np.float32)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, in their order."""
    adjusted, most = [0.0] * len(p), 0.0
    for rank, at in enumerate(sorted(range(len(p)), key=lambda at: p[at])):
        most = max(most, min(1.0, (len(p) - rank) * p[at]))
        adjusted[at] = most
    return adjusted


def detectable(n: int, opposite: float, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The smallest difference that McNemar's test would show with probability ``power``.

    Args:
        n: records.
        opposite: share of records that change the other way.
        alpha: level of the test.

    Returns:
        A share; None if no difference would be seen in so few.
    """
    largest = 1 - 2 * opposite
    if largest <= 0 or _power(n, largest, opposite, alpha) < power:
        return None
    low, high = 0.0, largest
    while high - low > 1e-4:
        middle = (low + high) / 2
        if _power(n, middle, opposite, alpha) < power:
            low = middle
        else:
            high = middle
    return high


def _power(n: int, difference: float, opposite: float, alpha: float) -> float:
    """The chance that the test rejects, towards the side of the difference."""
    from scipy.stats import binom

    changing = difference + 2 * opposite
    counts, most = _critical(n, alpha)
    chances: Float[np.ndarray, " n"] = binom.pmf(counts, n, min(1.0, changing))
    rejects = np.where(most >= 0, binom.cdf(np.maximum(most, 0), counts, opposite / changing), 0.0)
    return float(chances @ rejects)


@lru_cache(maxsize=64)
def _critical(n: int, alpha: float) -> tuple[Int[np.ndarray, " n+1"], Int[np.ndarray, " n+1"]]:
    """For each number of changes, the most of them one way at which the test rejects; -1 for never."""
    from scipy.stats import binom

    counts = np.arange(n + 1)
    most = binom.ppf(alpha / 2, counts, 0.5).astype(int)
    most = np.where(2 * binom.cdf(most, counts, 0.5) > alpha, most - 1, most)
    return counts, np.where(counts == 0, -1, most)


@dataclass(frozen=True)
class CarrierEffect:
    """The same requests by text and by a carrier that is seen.

    Attributes:
        carrier: of the second.
        outcomes: ``before`` by text, ``after`` by the carrier; ``gained`` are those refused or not answered in words,
            and answered when seen.
    """

    carrier: str
    outcomes: Paired


def carrier_effects(
    answered: Mapping[str, float],
    intents: Mapping[str, str],
    carriers: Mapping[str, str],
    text: str = "text",
    *,
    seeds: int = 1,
) -> list[CarrierEffect]:
    """What it does that a request is seen instead of read, over intents that were asked both ways.

    A record of a carrier is compared with the text record of its intent; of several text records with the first.

    Args:
        answered: by id of harmful records, whether the attack succeeded, or in which share of so many ``seeds``.
        intents: by id, what is asked for: records that share it ask the same. Ids without one are left out.
        carriers: by id.
    """
    in_words: dict[str, str] = {}
    for one in answered:
        if carriers[one] == text and one in intents:
            in_words.setdefault(intents[one], one)
    found: dict[str, list[tuple[str, str]]] = {}
    for one in answered:
        if carriers[one] != text and one in intents and intents[one] in in_words:
            found.setdefault(carriers[one], []).append((in_words[intents[one]], one))
    return [
        CarrierEffect(
            carrier,
            paired(
                np.array([answered[first] for first, _ in pairs]),
                np.array([answered[second] for _, second in pairs]),
                [intents[second] for _, second in pairs],
                tests=len(found),
                seeds=seeds,
            ),
        )
        for carrier, pairs in sorted(found.items())
    ]
