"""Budgets: how much harmless requests may lose on things that nobody has seen yet, and what counts as one thing.

Harmless requests about one thing (a *group*) stand or fall together: a probe that takes knives for weapons refuses
every question about kitchen knives. A threshold set on records counts each of them as a new piece of evidence; so
budgets set on records are exceeded where the things are others. Here the group is what evidence is counted by.

The mathematics is :mod:`.statistics.budget`; this file imports neither NumPy nor torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from .artifact.examples import Example
from .errors import UsageError
from .settings import POSITIVE, Settings, setting, spell

Unit = Literal["group", "category", "record"]
_UNITS: tuple[Unit, ...] = get_args(Unit)
RATE: Final = "false_positive_rate"  # what sets a threshold where no budget does
_GIVEN = ({"max_over_refusal": POSITIVE}, {"max_utility_loss": POSITIVE})


class Budget(Settings):
    """What an adapter may cost harmless requests, as a promise about new groups of them.

    Over-refusal is what the adapter adds to it, and utility loss the exact answers that it takes: what the model
    refuses or gets wrong by itself is not the adapter's.
    """

    max_over_refusal: float | None = setting(
        None,
        "Budget: by how much over-refusal may rise on new groups of harmless requests, such as 0.05.",
        gt=0,
        lt=1,
    )
    max_utility_loss: float | None = setting(
        None, "Budget: how many exact answers may be lost on new groups of harmless requests, as a share.", gt=0, lt=1
    )
    budget_by: Unit = setting(
        "group", "What is new about a new request: its group, its category, or only itself.", acts=_GIVEN
    )
    confidence: float = setting(
        0.9, "Chance, over draws of the calibration groups, with which the budget holds.", acts=_GIVEN, gt=0, lt=1
    )

    @property
    def given(self) -> bool:
        """Whether there is one."""
        return bool(self.max_over_refusal or self.max_utility_loss)

    @property
    def recorded_values(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {name: value for name, value in self.values().items() if value is not None}

    def recorded_with(self, settings: Settings) -> dict[str, Any]:
        """A method's settings for its manifest, with the budget in the place of the rate that it supersedes."""
        return {**{name: value for name, value in settings.values().items() if name != RATE}, **self.recorded_values}

    @property
    def smaller(self) -> float:
        """The budget of what only refuses: a harmless request that is refused has lost its answer, too."""
        return min(limit for limit in (self.max_over_refusal, self.max_utility_loss) if limit)


@dataclass(frozen=True)
class Groups:
    """Harmless records by what they are about.

    Attributes:
        records: those that count, in the order in which they were given.
        names: the group of each of them.
        left_out: groups that do not count, because the fit has seen them.
    """

    records: tuple[Example, ...]
    names: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many groups count."""
        return len(set(self.names))

    def told(self) -> str:
        """What to say about groups that do not count; empty where all do."""
        if not self.left_out:
            return ""
        some = ", ".join(self.left_out[:3]) + (" …" if len(self.left_out) > 3 else "")
        count = len(self.left_out)
        return f"{count} calibration groups do not count for the budget, because the fit has seen them: {some}."


def groups_of(
    records: Sequence[Example], by: Unit, *, split: str = "calibration", seen: Collection[str] = ("fit",)
) -> Groups:
    """The harmless records of a split by group, without the groups that the splits ``seen`` hold as well.

    A record without a group has its pair's. Of unit ``record`` each is alone, and none was seen.

    Raises:
        UsageError: records name no group (or category), or all groups were seen.
    """
    chosen = [one for one in records if one.split == split and one.label == "harmless"]
    if by == "record":
        return Groups(tuple(chosen), tuple(one.id for one in chosen))
    by_id = {one.id: one for one in records}
    names = [group_name(one, by, by_id) for one in chosen]
    spelled = spell(Budget, "budget_by")
    if missing := names.count(""):
        others = " or ".join(f"{spelled} {unit}" for unit in _UNITS if unit != by)
        raise UsageError(
            f"{missing} of {len(chosen)} harmless records of split {split} name no {by}, and requests about one thing "
            "are no evidence about others.",
            f"Give them the field {by!r}, or say what is new when a request is: {others}.",
        )
    known = {group_name(one, by, by_id) for one in records if one.split in seen} - {""}
    kept = [(one, name) for one, name in zip(chosen, names, strict=True) if name not in known]
    left_out = tuple(sorted(set(names) & known))
    if chosen and not kept:
        raise UsageError(
            f"The fit has seen every {by} of split {split}: there is none left to keep a budget on.",
            f"Split the records anew by {by} (`safetykit data split`), or choose another {spelled}.",
        )
    return Groups(tuple(one for one, _ in kept), tuple(name for _, name in kept), left_out)


def group_name(record: Example, by: Unit, by_id: Mapping[str, Example]) -> str:
    """What a record is about; empty where neither it nor its pair says so."""
    own: str = getattr(record, by)
    if by == "group" and not own and record.pair is not None and record.pair in by_id:
        own = by_id[record.pair].group
    return own
