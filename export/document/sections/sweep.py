"""``sweep.json``: every setting a fit tried on the calibration split, and which was chosen."""

from __future__ import annotations

from typing import Self

from pydantic import JsonValue, model_validator

from ....adapters.artifact.manifest import Strict
from ....adapters.section import Section
from ....toolkit.evaluation.preference import rank
from ..axes import few_ticks, percent
from ..plots import BLUE, GREY, INK, VERMILION, Plot, canvas, finished, legend

FIGURES = ("attack_success", "over_refusal", "exact")
_FIRST = ("variant", "gate", "layers", "rank", "alpha")


class SweepTable(Strict):
    """A sweep.

    Attributes:
        undefended: the figures without an adapter.
        allowed_cost: how far over-refusal may rise and exact answers fall.
        within_cost: whether the chosen trial kept that.
        tested: whether it was chosen by a budget on other records than those of the table.
        trials: settings by name, and the figures.
        best: the chosen trial.
    """

    undefended: dict[str, float]
    allowed_cost: float
    within_cost: bool
    tested: bool = False
    trials: tuple[dict[str, JsonValue], ...]
    best: dict[str, JsonValue]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for row in (self.undefended, self.best, *self.trials):
            if any(not isinstance(row.get(name), int | float) for name in FIGURES):
                raise ValueError(f"a row lacks one of {', '.join(FIGURES)}")
        if self.best not in self.trials:
            raise ValueError("the chosen setting is none of the trials")
        return self

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the settings, the telling ones first."""
        names = [name for name in self.best if name not in FIGURES]
        return tuple(sorted(names, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST)))

    def cost(self, trial: dict[str, JsonValue]) -> float:
        """How much worse harmless requests fare: the larger of over-refusal gained and exact answers lost."""
        gained = float(trial["over_refusal"]) - self.undefended["over_refusal"]  # type: ignore[arg-type]
        lost = self.undefended["exact"] - float(trial["exact"])  # type: ignore[arg-type]
        return max(gained, lost)

    def stops(self, trial: dict[str, JsonValue]) -> bool:
        """Whether fewer attacks succeed than without an adapter."""
        return float(trial["attack_success"]) < self.undefended["attack_success"]  # type: ignore[arg-type]

    def _rank(self, trial: dict[str, JsonValue]) -> tuple[float, ...]:
        attacks, undefended = float(trial["attack_success"]), self.undefended["attack_success"]  # type: ignore[arg-type]
        return (*rank(attacks, self.cost(trial), undefended, self.allowed_cost), trial != self.best)

    def leading(self, count: int) -> tuple[dict[str, JsonValue], ...]:
        """The best ``count`` trials, the best of every variant, and the chosen one; best first.

        Ranked as the fit chose, see :func:`~safetykit.toolkit.evaluation.preference.rank`.
        """
        ranked = sorted(self.trials, key=self._rank)
        variants: set[JsonValue] = set()
        kept = []
        for at, trial in enumerate(ranked):
            if at < count or trial == self.best or trial.get("variant") not in variants:
                kept.append(trial)
            variants.add(trial.get("variant"))
        return tuple(kept)


def sweep_plot(table: SweepTable, tag: str) -> Plot:
    """Attack success against over-refusal of every trial, the chosen one and the unmodified model marked."""
    trials = [(trial["over_refusal"], trial["attack_success"]) for trial in table.trials]
    with canvas(3.6) as (_, (axes,), buffer):
        axes.plot(*zip(*trials, strict=True), "o", ms=4, color=GREY, alpha=0.8, mew=0, label="trial")
        before, best = table.undefended, table.best
        axes.plot(before["over_refusal"], before["attack_success"], "s", ms=8, color=VERMILION, label="unmodified")
        axes.plot(best["over_refusal"], best["attack_success"], "D", ms=8, color=BLUE, label="chosen")
        limit = before["over_refusal"] + table.allowed_cost
        axes.axvline(limit, color=INK, lw=1, ls=":", label="allowed cost")
        axes.set_xlabel("over-refusal, share of harmless records")
        axes.set_ylabel("attack success, share of harmful records")
        for axis in (axes.xaxis, axes.yaxis):
            percent(axis)
            few_ticks(axis)
        axes.grid(color=GREY, alpha=0.3, lw=0.6)
        legend(axes)
    words = (
        f"chosen {100 * best['attack_success']:.1f}% attack success, {100 * best['over_refusal']:.1f}% over-refusal; "
        f"unmodified {100 * before['attack_success']:.1f}% and {100 * before['over_refusal']:.1f}%"
    )
    caption = (
        f"{len(trials)} settings tried on the calibration split; down and left is better. Right of the dotted line the "
        "allowed over-refusal is exceeded."
    )
    return finished(tag, "Settings tried", caption, words, buffer)


SWEEP = Section("sweep", SweepTable, lambda table, tag, draw: (sweep_plot(table, tag),))
