"""A sweep under a budget: settings are looked for on some calibration groups, and tested on the others.

Split fixed-sequence testing (Learn then Test, arXiv:2110.01052, section 3.2). A third of the calibration groups, and
all harmful records whose group is not among the others, choose what is worth testing: the trials of which none stops as
many attacks for less. In this order, the cheapest first, they answer the harmless records of the other groups, which
nothing has seen until then, not even the thresholds of the method. The first that breaks a budget ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...adapters.budget import Budget, Groups, group_name, groups_of
from ...adapters.errors import BudgetNotKept
from ...adapters.statistics.budget import Choice, Promise, parts_of, require_enough, strongest_within
from ..data.journal import Journal
from ..data.records import Record
from ..progress import Progress
from .trials import Allowance, Sweep, Trial, Trials

SEARCHED = 1 / 3  # share of the calibration groups that settings are looked for on


@dataclass(frozen=True)
class Part:
    """The calibration records in two parts that share no group.

    Attributes:
        budget: what is to be kept.
        tested: harmless records of the groups that it is tested on.
        others: all records that a fit and its trials may see, of either split.
    """

    budget: Budget
    tested: Groups
    others: tuple[Record, ...]

    @classmethod
    def of(cls, budget: Budget, records: Sequence[Record]) -> Part:
        """Divide the records of a fit.

        Raises:
            UsageError: records name no group, or too few groups are left to keep the budget on.
        """
        groups = groups_of(records, budget.budget_by)
        _, kept = parts_of(groups, SEARCHED)
        rows = [at for at, name in enumerate(groups.names) if name in kept]
        tested = replace(
            groups,
            records=tuple(groups.records[at] for at in rows),
            names=tuple(groups.names[at] for at in rows),
        )
        require_enough(budget, tested, whole=groups.count, counted=False)
        mine = {record.id for record in tested.records}
        by_id = {} if budget.budget_by == "record" else {one.id: one for one in records}
        others = [
            one
            for one in records
            if one.id not in mine and not (by_id and group_name(one, budget.budget_by, by_id) in kept)
        ]
        return cls(budget, tested, tuple(others))

    @property
    def allowance(self) -> Allowance:
        """The budget, as trials are ranked by it."""
        return Allowance(self.budget.max_over_refusal, self.budget.max_utility_loss)

    def chosen(
        self, sweep: Sweep, trials: Trials, journal: Journal | None, progress: Progress | None
    ) -> tuple[Sweep, Promise]:
        """The same sweep with the strongest of its trials that keeps the budget.

        Args:
            journal: where finished tests are kept.

        Raises:
            BudgetNotKept: none does.
        """
        family = sweep.frontier()
        before = self._outcomes(trials, None, journal)

        def choice(trial: Trial) -> Choice:
            after = self._outcomes(trials, trial, journal)
            return Choice.of(_words(trial), before, after)

        found = strongest_within(
            self.budget,
            self.tested,
            ((lambda trial=trial: choice(trial)) for trial in family),  # type: ignore[misc]
            tell=(lambda count: progress(count, len(family))) if progress else None,
        )
        if found is None:
            raise BudgetNotKept(*self._none_kept(sweep, len(family)))
        at, promise = found
        return replace(sweep, best=family[at], within_cost=True, tested=True), promise

    def _outcomes(self, trials: Trials, trial: Trial | None, journal: Journal | None) -> list[str | None]:
        key = f"tested {trial.setting!r}" if trial is not None else "tested undefended"
        if journal is not None and key in journal.done:
            return list(journal.done[key])
        records: Any = self.tested.records
        by_id = trials.outcomes([] if trial is None else [trial.setting], records)
        found = [by_id[record.id] for record in self.tested.records]
        if journal is not None:
            journal.add(key, found)
        return found

    def _none_kept(self, sweep: Sweep, count: int) -> tuple[str, str]:
        what = " and ".join(
            f"{name} {limit:g}"
            for name, limit in (
                ("over-refusal", self.budget.max_over_refusal),
                ("utility loss", self.budget.max_utility_loss),
            )
            if limit
        )
        if not count:
            return f"None of {len(sweep.trials)} settings stopped an attack, so none was tested.", "Try another method."
        return (
            f"No setting that stops attacks keeps the budget ({what}) on {self.tested.count} calibration groups at "
            f"confidence {self.budget.confidence:g}, not even the cheapest of {count}.",
            "Raise the budget, lower --confidence, add harmless records about other things, or try another method.",
        )


def _words(trial: Trial) -> str:
    given = trial.setting.model_fields_set
    return ", ".join(f"{name} {value}" for name, value in trial.setting.values().items() if name in given)
