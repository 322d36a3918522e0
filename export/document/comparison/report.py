"""The documents of a comparison, each made of its results and answers alone: the same results give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ....toolkit.comparison.analysis import Answered, Compared
from ....toolkit.comparison.entries import NONE
from ....toolkit.comparison.results import ALL, METRICS, WORDS, Results, Summary, Test
from ....toolkit.comparison.telling import count, p_value, points
from ....toolkit.data.records import CARRIERS
from ....toolkit.evaluation.evaluate import Metric, Rate
from ..plots import Plot
from ..rendering import html_templates, markdown_templates
from .examples import SHOWN, Failures, failures_of
from .model_index import model_index
from .plots import frontier, moved

if TYPE_CHECKING:
    from ....toolkit.comparison.results import Agreement, CarrierTest, Verdict


@dataclass(frozen=True)
class Line:
    """A defence in the tables.

    Attributes:
        number: as the plots call it.
        chosen_by: on the records that only help to choose; None where there are none.
        tests: against no defence, by metric.
        carriers: attack success by ``benchmark: carrier``.
        judges: shares by judge; ``kappas``: agreement of each with the first, which has none.
    """

    number: int
    summary: Summary
    chosen_by: Summary | None
    tests: Mapping[Metric, Test]
    carriers: Mapping[str, Rate]
    judges: Mapping[str, Mapping[Metric, Rate]]
    kappas: Mapping[str, float | None]
    recommended: bool


@dataclass(frozen=True)
class Section:
    """A family in the report."""

    family: str
    verdicts: tuple[Verdict, ...]
    lines: tuple[Line, ...]
    carriers: tuple[str, ...]
    seen: tuple[CarrierTest, ...]
    agreement: tuple[Agreement, ...]
    plots: tuple[Any, ...]
    failures: Failures | None

    @property
    def seen_first(self) -> list[CarrierTest]:
        """Of the model by itself and of the defence that is recommended."""
        wanted = {NONE, *(line.summary.arm for line in self.lines if line.recommended)}
        return [one for one in self.seen if one.arm in wanted]

    @property
    def seen_others(self) -> list[CarrierTest]:
        """Of the other defences."""
        first = self.seen_first
        return [one for one in self.seen if one not in first]

    @property
    def seeded(self) -> bool:
        """Whether a defence has several seeds."""
        return any(line.summary.seeds for line in self.lines)


def documents(found: Compared) -> dict[str, bytes]:
    """Files by name: ``report.html``, ``results.md``, ``model-index.yaml``, and of each family the frontier.

    Args:
        found: results with the answers they come from.
    """
    results = found.results
    judge = results.judges[0]
    made: dict[str, bytes] = {}
    plots: dict[str, list[Plot]] = {}
    for at, family in enumerate(results.families):
        drawn = frontier(results, family, judge, f"frontier-{at}")
        if drawn is not None:
            name = "frontier" if len(results.families) == 1 else f"frontier-{family}"
            made[f"{name}.png"], made[f"{name}.svg"] = drawn.png, drawn.plot.svg.encode()
            plots.setdefault(family, []).append(drawn.plot)
        if (forest := moved(results, family, judge, f"moved-{at}")) is not None:
            plots.setdefault(family, []).append(forest)
    sections = [_section(results, found.answers, family, plots.get(family, [])) for family in results.families]
    given = {
        "results": results,
        "sections": sections,
        "metrics": METRICS,
        "words": WORDS,
        "points": points,
        "count": count,
        "p_value": p_value,
        "shown": SHOWN,
        "none": NONE,
    }
    made["report.html"] = html_templates().get_template("comparison.html.jinja").render(**given).encode()
    made["results.md"] = markdown_templates().get_template("comparison.md.jinja").render(**given).encode()
    made["model-index.yaml"] = model_index(results).encode()
    return made


@dataclass(frozen=True)
class _Shown:
    title: str
    caption: str
    svg: Markup


def _section(
    results: Results, answers: Mapping[tuple[str, str], list[Answered]], family: str, plots: list[Plot]
) -> Section:
    judge = results.judges[0]
    verdicts = tuple(one for one in results.verdicts if one.family == family)
    carriers = _carriers(results, family, judge)
    choices = {one.arm: one for one in results.chosen_from(family, judge)}
    by_judge = {other: {one.arm: one.rates for one in results.summary(family, other)} for other in results.judges}
    recommended = next((one.recommended for one in verdicts if one.judge == judge), None)
    lines = [
        Line(
            at,
            one,
            choices.get(one.arm),
            results.tests_of(family, judge, one.arm),
            {name: carriers[name][one.arm] for name in carriers if one.arm in carriers[name]},
            {other: found[one.arm] for other, found in by_judge.items()},
            {
                pair.other: pair.kappa
                for pair in results.agreement
                if (pair.family, pair.arm, pair.one) == (family, one.arm, judge)
            },
            one.arm == recommended,
        )
        for at, one in enumerate(results.summary(family, judge))
    ]
    return Section(
        family,
        verdicts,
        tuple(lines),
        tuple(carriers),
        tuple(one for one in results.carriers if (one.family, one.judge) == (family, judge)),
        tuple(one for one in results.agreement if (one.family, one.arm) == (family, ALL)),
        tuple(_Shown(plot.title, plot.caption, Markup(plot.svg)) for plot in plots),
        failures_of(results, dict(answers), family, judge),
    )


def _carriers(results: Results, family: str, judge: str) -> dict[str, dict[str, Rate]]:
    """Attack success by carrier, with the benchmark if there are several, and by arm."""
    found: dict[str, dict[str, Rate]] = {}
    several = len(results.reported) > 1
    rows = {(one.family, one.row) for one in results.arms}
    for one in results.figures:
        if (one.family, one.judge) != (family, judge) or (family, one.arm) not in rows:
            continue
        for row in one.rows:
            if row.group != ALL and row.group.split("/")[0] in CARRIERS and "attack_success" in row.metrics:
                name = f"{one.benchmark}: {row.group}" if several else row.group
                found.setdefault(name, {})[one.arm] = row.metrics["attack_success"]
    return found
