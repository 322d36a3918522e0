"""Choosing under a budget so that it holds on new groups: Learn-then-Test with groups as the exchangeable unit.

Let ℓ_g be a group's mean loss at a choice λ (a threshold, a strength): of over-refusal, the share of its harmless
records that are refused. Calibration groups and those to come are draws from one population, with mean risk
R(λ) = E[ℓ_g]; records within a group may depend on each other as they like. What is promised for the chosen λ̂ is::

    P( R(λ̂) ≤ α ) ≥ 1 − δ        over draws of the calibration groups; α the budget, 1 − δ the confidence

Test (Waudby-Smith & Ramdas, arXiv:2010.09686, as risk-controlling sets use it, Bates et al., arXiv:2101.02703)
    H: R(λ) > α is rejected once a bet against it has multiplied its stake by 1/δ, which under H happens with chance δ
    at most (Ville)::

        K_t = Π_{i≤t} (1 + ν_i (α − ℓ_i)),   ν_i = min( √(2 ln(1/δ) / (n σ̂²_{i−1})), c / (1 − α) )

    σ̂² is the running variance, from ¼ on. It holds for finite n and any ℓ ≤ 1, also for differences that fall below 0,
    and profits where groups differ little; the Hoeffding–Bentkus bound does not. Bets follow the digests of the groups'
    names, an order that knows nothing of losses. A mean above α does not pass, even if the stake had grown before it
    fell. Where every group is one record and a loss is 0 or 1, the test is the exact binomial one.

Family (Learn then Test, Angelopoulos et al., arXiv:2110.01052)
    Choices are tested in an order that calibration losses had no part in, from the one that refuses least; the first
    that fails ends it, and the last that passed is chosen. So their number needs no correction (fixed sequence).
    Thresholds: from above the highest risk of a harmless record downwards, one after the other.

Ours: the unit. With records as the unit, strongly dependent ones count as so many draws, and the promise is void.
The mean over groups weighs each thing the same, however many records ask about it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import ceil, log, log1p
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import binom

from ..budget import Budget, Groups
from ..errors import UsageError
from ..settings import spell
from .probe import between

_MOST_BET = 0.95  # c: of the stake that a loss of 1 would take
_STEPS = 40  # of bisections
_MANY = 100_000  # groups


@dataclass(frozen=True)
class Kept:
    """One budget, and what is known of it at the choice that was made.

    Attributes:
        what: ``over-refusal`` or ``utility loss``.
        budget: α. ``observed``: mean over the calibration groups. ``bound``: the smallest budget that the choice keeps
            with the same confidence.
    """

    what: str
    budget: float
    observed: float
    bound: float


@dataclass(frozen=True)
class Promise:
    """What is promised of a choice; the attachment ``budget`` (JSON).

    Attributes:
        kept: each budget.
        unit: ``group``, ``category`` or ``record``.
        groups: how many were tested, with so many harmless ``records``.
        left_out: groups that do not count, because the fit has seen them.
        confidence: 1 − δ.
        tested: choices that were tested.
        chosen: the choice in words.
    """

    kept: tuple[Kept, ...]
    unit: str
    groups: int
    records: int
    left_out: int
    confidence: float
    tested: int
    chosen: str

    def table(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "kept": [asdict(one) for one in self.kept]}


class Losses:
    """Means by group of records' losses.

    Args:
        groups: of harmless records.
        counted: whether every loss is 0 or 1; one below 0 is a gain.
    """

    def __init__(self, groups: Groups, counted: bool = True) -> None:
        names = sorted(set(groups.names), key=lambda name: hashlib.sha256(name.encode()).digest())
        place = {name: at for at, name in enumerate(names)}
        self._rows = np.array([place[name] for name in groups.names], int)
        self._sizes = np.bincount(self._rows)
        # One record a group, lost or not: then the binomial test is exact.
        self._alone = counted and len(names) == len(groups.names)

    def means(self, losses: Float[np.ndarray, " records"]) -> Float[np.ndarray, " groups"]:
        """Mean loss of each group, in the order of the bets."""
        found: np.ndarray = np.bincount(self._rows, weights=losses) / self._sizes
        return found

    def holds(self, losses: Float[np.ndarray, " records"], limit: float, confidence: float) -> bool:
        """Whether the mean over new groups is at most ``limit``, at this confidence."""
        return holds(self.means(losses), limit, confidence, alone=self._alone)

    def kept(self, what: str, losses: Float[np.ndarray, " records"], limit: float, confidence: float) -> Kept:
        """What is known of a choice that held."""
        means = self.means(losses)
        low, high = max(float(means.mean()), 0.0), limit
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if holds(means, middle, confidence, alone=self._alone) else (middle, high)
        return Kept(what, limit, float(means.mean()), high)


def holds(means: Float[np.ndarray, " groups"], limit: float, confidence: float, *, alone: bool = False) -> bool:
    """Whether the mean over new groups is at most ``limit``, at this confidence; see the module's docstring.

    Args:
        means: of calibration groups, at most 1 each, in an order that does not depend on them.
        alone: each is one record, lost (1) or not (0).
    """
    count = len(means)
    if not count or not 0 < limit < 1 or means.mean() > limit:
        return False
    risk = 1 - confidence
    if alone:
        return bool(binom.cdf(round(float(means.sum())), count, limit) <= risk)
    seen = np.arange(1, count + 1)
    average = (0.5 + np.cumsum(means)) / (seen + 1)
    spread = (0.25 + np.cumsum((means - average) ** 2)) / (seen + 1)
    before = np.concatenate([[0.25], spread[:-1]])
    bets = np.minimum(np.sqrt(2 * log(1 / risk) / (count * before)), _MOST_BET / (1 - limit))
    return bool(np.cumsum(np.log1p(bets * (limit - means))).max() >= log(1 / risk))


def needed(limit: float, confidence: float, *, alone: bool = False) -> int:
    """How many groups it takes, if none loses anything; of very many, a lower bound."""
    exact = log(1 - confidence) / log1p(-limit)
    if exact > _MANY:
        return ceil(exact)
    low, high = 0, 2 * ceil(exact) + 64
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(np.zeros(middle), limit, confidence, alone=alone) else (middle, high)
    return high


def require_enough(budget: Budget, groups: Groups, *, whole: int | None = None, counted: bool = True) -> None:
    """Refuse a budget that so few groups cannot keep, whatever is chosen.

    Args:
        whole: groups of the calibration split, where only a part of them are tested.
        counted: see :class:`Losses`.

    Raises:
        UsageError: saying how many would be needed.
    """
    limit = budget.smaller
    least = needed(limit, budget.confidence, alone=counted and groups.count == len(groups.records))
    if groups.count >= least:
        return
    there = f"{groups.count} are tested" if whole is None else f"{whole} are there, of which {groups.count} are tested"
    more = "" if not whole else f" ({ceil(least * whole / max(groups.count, 1))} in all)"
    raise UsageError(
        f"A budget of {limit:g} takes at least {least} calibration groups{more} at confidence {budget.confidence:g}, "
        f"by {budget.budget_by}; {there}.",
        f"Add harmless records about other things, or raise the budget or lower {spell(Budget, 'confidence')}.",
    )


def threshold_within(budget: Budget, groups: Groups, risks: dict[str, float]) -> tuple[float, Promise]:
    """The lowest threshold of a detector under which the budget holds, and the promise.

    Args:
        groups: harmless calibration records.
        risks: of all calibration records, by id.

    Raises:
        UsageError: there are too few groups for any threshold.
    """
    require_enough(budget, groups)
    limit, losses = budget.smaller, Losses(groups)
    own = np.array([risks[record.id] for record in groups.records])
    highest = np.unique(own)[::-1]
    tested, chosen = 0, None
    for value in highest:  # what lies above it is refused
        tested += 1
        if not losses.holds((own > value).astype(float), limit, budget.confidence):
            break
        chosen = float(value)
    assert chosen is not None  # the first refuses none, for which there are groups enough
    threshold = between(np.array(list(risks.values())), chosen)
    refused = (own > threshold).astype(float)
    kept = tuple(
        losses.kept(what, refused, given, budget.confidence)
        for what, given in (("over-refusal", budget.max_over_refusal), ("utility loss", budget.max_utility_loss))
        if given
    )
    return threshold, _promise(budget, groups, kept, tested, f"threshold {threshold:.4g}")


@dataclass(frozen=True)
class Choice:
    """One member of a family.

    Attributes:
        words: what it is.
        over_refusal: by record, what it adds: 1 newly refused, −1 no longer, 0 as before.
        utility_loss: by record, exact answers lost: 1 lost, −1 gained, 0 as before.
    """

    words: str
    over_refusal: Float[np.ndarray, " records"]
    utility_loss: Float[np.ndarray, " records"]

    @classmethod
    def of(cls, words: str, before: Sequence[str | None], after: Sequence[str | None]) -> Choice:
        """From the outcomes (``refused``, ``answered``, other; None without a verdict) without it and with it."""

        def more(outcome: str) -> Float[np.ndarray, " records"]:
            pairs = zip(before, after, strict=True)
            return np.array([float(now == outcome) - float(then == outcome) for then, now in pairs])

        return cls(words, more("refused"), -more("answered"))


def strongest_within(
    budget: Budget, groups: Groups, family: Iterable[Callable[[], Choice]], *, tell: Callable[[int], None] | None = None
) -> tuple[int, Promise] | None:
    """The last choice of a family, weakest first, before one breaks a budget; None where the first does.

    Args:
        family: what makes each choice, called in order and no further than needed.
        tell: told how many were tested.
    """
    losses = Losses(groups, counted=False)

    def parts(choice: Choice) -> list[tuple[str, Float[np.ndarray, " records"], float]]:
        costs = (
            ("over-refusal", choice.over_refusal, budget.max_over_refusal),
            ("utility loss", choice.utility_loss, budget.max_utility_loss),
        )
        return [(what, values, limit) for what, values, limit in costs if limit]

    last: tuple[int, Choice] | None = None
    tested = 0
    for at, make in enumerate(family):
        choice = make()
        tested += 1
        if tell:
            tell(tested)
        if not all(losses.holds(values, limit, budget.confidence) for _, values, limit in parts(choice)):
            break
        last = at, choice
    if last is None:
        return None
    at, choice = last
    kept = [losses.kept(what, values, limit, budget.confidence) for what, values, limit in parts(choice)]
    return at, _promise(budget, groups, kept, tested, choice.words)


def parts_of(groups: Groups, share: float) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the groups that choices may be looked for on, and of those that test them; by the names' digests."""
    names = sorted(set(groups.names), key=lambda name: hashlib.sha256(f"part {name}".encode()).digest())
    count = max(1, round(share * len(names)))
    return frozenset(names[:count]), frozenset(names[count:])


def _promise(budget: Budget, groups: Groups, kept: Sequence[Kept], tested: int, chosen: str) -> Promise:
    return Promise(
        kept=tuple(kept),
        unit=budget.budget_by,
        groups=groups.count,
        records=len(groups.records),
        left_out=len(groups.left_out),
        confidence=budget.confidence,
        tested=tested,
        chosen=chosen,
    )
