"""``results.json``: what a comparison found, as plain figures; report, table and front matter are made of it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ...adapters.artifact.manifest import Strict
from ..evaluation.evaluate import Metric, Rate, Row

ALL = "all"  # in the place of a benchmark: the records of all of them; of a group: all carriers
METRICS: tuple[Metric, ...] = ("attack_success", "over_refusal", "exact")
WORDS: dict[Metric, str] = {
    "attack_success": "attack success",
    "over_refusal": "over-refusal",
    "exact": "exact answers",
    "refused": "refused",
}


class BenchmarkInfo(Strict):
    """Records that were answered.

    Attributes:
        chooses: whether they only help to choose the defence that is recommended, and are not reported.
        data: as the grid names them; ``revision``: SHA-256 of the records, pixels included, as manifests give it.
        skipped: rows that were left out because they are no records.
    """

    name: str
    data: str
    split: str
    n: int
    revision: str
    max_new_tokens: int
    skipped: int = 0
    chooses: bool = False


class ArmInfo(Strict):
    """A model with a defence.

    Attributes:
        family: the model that it is compared with, by itself: its own, or the grid's ``baseline`` for it.
        model: in the grid; ``path``: as the grid names it.
        name: how it is called within its family; ``row``: in which row of the tables it stands, with its other seeds.
        seed: of its fits, if there are several.
        methods: of its adapters, with variants.
        defence: at inference time; empty without one.
        calls: of the model for an answer, on average.
        files: SHA-256 of its evaluations, by their paths in the folder.
    """

    family: str
    model: str
    path: str
    name: str
    row: str
    seed: int | None = None
    methods: tuple[str, ...] = ()
    defence: str = ""
    calls: float = 1.0
    files: dict[str, str] = Field(default_factory=dict)


class Refused(Strict):
    """A defence that is not compared, because no choice of its fit keeps its budget; ``reason``: in words."""

    family: str
    arm: str
    reason: str


class Figures(Strict):
    """The table of an arm on a benchmark, by one judge; of a row of several seeds, the means of their shares.

    Attributes:
        no_verdict: records of which the judge says nothing, of all seeds.
    """

    family: str
    arm: str
    benchmark: str
    judge: str
    rows: tuple[Row, ...]
    no_verdict: int = 0


class Test(Strict):
    """A metric with a defence against without, on the same records.

    Attributes:
        arm: a row: a defence with all its seeds.
        group: ``all``, or a carrier.
        n: records; ``groups``: what is drawn together.
        before, after: shares; ``lost``, ``gained``: records that lose or gain the outcome, on average over seeds.
        low, high: 95 % interval of ``after - before``, drawn by groups.
        p: McNemar's exact, by groups and over seeds as :mod:`.statistics` says; ``adjusted``: Holm's, among the
            defences of the family, each of which counts once, whatever its seeds.
        detectable: smallest difference that would be seen with probability 0.8; None if none would.
    """

    family: str
    arm: str
    benchmark: str
    judge: str
    metric: Metric
    group: str
    n: int
    groups: int
    before: float
    after: float
    lost: float
    gained: float
    low: float
    high: float
    p: float
    adjusted: float
    detectable: float | None

    @property
    def difference(self) -> float:
        """``after - before``."""
        return self.after - self.before

    @property
    def shown(self) -> bool:
        """Whether there is a difference, at 5 % among the defences."""
        return self.adjusted < 0.05


class CarrierTest(Strict):
    """The same requests by text and by a carrier that is seen, of one arm.

    Attributes:
        text: attack success in words; ``seen``: by the carrier.
        only_seen: requests that succeed by the carrier alone; ``only_text``: in words alone.
    """

    family: str
    arm: str
    benchmark: str
    judge: str
    carrier: str
    n: int
    text: float
    seen: float
    only_seen: float
    only_text: float
    low: float
    high: float
    p: float


class Agreement(Strict):
    """How far two judges say the same of answers.

    Attributes:
        arm: whose answers; ``all``: those of the whole family.
        n: answers on which both have a verdict; ``equal``: the share on which they agree; ``kappa``: Cohen's.
    """

    family: str
    arm: str
    one: str
    other: str
    n: int
    equal: float
    kappa: float | None


class Spread(Strict):
    """How far seeds scatter.

    Attributes:
        deviation: of their shares, standard, with n − 1; None of one seed.
        low, high: the lowest and the highest of them.
    """

    deviation: float | None
    low: float
    high: float


class Summary(Strict):
    """A defence over all benchmarks.

    Attributes:
        rates: shares over the records of all benchmarks; of several seeds their means, with intervals of as many
            records as one of them answered.
        seeds: how many there are, 0 of a defence without; ``spread``: how far they scatter.
        worst: attack success of the worst carrier; ``worst_group``: which, with its benchmark if there are several.
        worst_over_refusal: over-refusal of the worst carrier.
        within_budget: whether it costs no more than the budgets allow; None for no defence.
        on_front: no other arm of the family is as good in attack success, over-refusal and exact answers, and better in
            one.
    """

    family: str
    arm: str
    judge: str
    rates: dict[Metric, Rate]
    seeds: int = 0
    spread: dict[Metric, Spread] = Field(default_factory=dict)
    worst: Rate | None
    worst_group: str
    worst_over_refusal: Rate | None = None
    within_budget: bool | None
    on_front: bool


class Verdict(Strict):
    """What a family's figures come to, by one judge.

    Attributes:
        recommended: the defence that lets fewest attacks through within the budgets; None if there is none.
        chosen_on: the split on whose records it was chosen; None: on those that are reported.
        sentence: all of it in words.
    """

    family: str
    judge: str
    recommended: str | None
    chosen_on: str | None = None
    sentence: str


class Results(Strict):
    """Everything a comparison found.

    Attributes:
        choices: summaries of the records that only help to choose.
    """

    schema_version: Literal[1] = 1
    title: str
    grid: dict[str, Any]
    benchmarks: tuple[BenchmarkInfo, ...]
    judges: tuple[str, ...]
    arms: tuple[ArmInfo, ...]
    refused: tuple[Refused, ...] = ()
    figures: tuple[Figures, ...]
    tests: tuple[Test, ...]
    carriers: tuple[CarrierTest, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    summaries: tuple[Summary, ...]
    verdicts: tuple[Verdict, ...]
    choices: tuple[Summary, ...] = ()
    warnings: tuple[str, ...] = Field(default=())

    @property
    def families(self) -> list[str]:
        """In the order of the arms."""
        return list(dict.fromkeys(arm.family for arm in self.arms))

    def summary(self, family: str, judge: str) -> list[Summary]:
        """The defences of a family by one judge."""
        return [one for one in self.summaries if (one.family, one.judge) == (family, judge)]

    def chosen_from(self, family: str, judge: str) -> list[Summary]:
        """The same on the records that only help to choose; none if the reported ones do."""
        return [one for one in self.choices if (one.family, one.judge) == (family, judge)]

    @property
    def reported(self) -> list[BenchmarkInfo]:
        """The benchmarks without those that only help to choose."""
        return [one for one in self.benchmarks if not one.chooses]

    def tests_of(
        self, family: str, judge: str, arm: str, *, benchmark: str | None = None, group: str = ALL
    ) -> dict[Metric, Test]:
        """The tests of an arm, by metric; over all benchmarks if none is named."""
        name = self.pooled if benchmark is None else benchmark
        wanted = (family, judge, arm, name, group)
        return {
            one.metric: one
            for one in self.tests
            if (one.family, one.judge, one.arm, one.benchmark, one.group) == wanted
        }

    @property
    def pooled(self) -> str:
        """What tests over all records call their benchmark."""
        return self.reported[0].name if len(self.reported) == 1 else ALL
