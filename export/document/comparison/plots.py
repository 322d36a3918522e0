"""The frontier, and how far each defence moves attack success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from ....toolkit.comparison.results import WORDS, Results, Summary
from ....toolkit.evaluation.evaluate import Metric
from ..axes import few_ticks, percent
from ..plots import BLUE, CYCLE, GREY, INK, VERMILION, Plot, canvas, finished, legend, rows_canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 200
_MARKERS = "os^Dv<>Ph*"
_PANEL, _APART = (280.0, 160.0), 9.0  # points: about the size of a panel, and what lies apart in it
_OTHERS: tuple[Metric, ...] = ("over_refusal", "exact")


@dataclass(frozen=True)
class Drawn:
    """A plot for pages and as a picture; ``png`` is on white."""

    plot: Plot
    png: bytes


def frontier(results: Results, family: str, judge: str, tag: str) -> Drawn | None:
    """Attack success against over-refusal and against exact answers; None where nothing harmful was answered."""
    arms = [one for one in results.summary(family, judge) if "attack_success" in one.rates]
    panels = [metric for metric in _OTHERS if arms and all(metric in one.rates for one in arms)]
    if not panels:
        return None
    picture = BytesIO()
    with canvas(0.6 + 0.11 * len(arms) + 2.9 * len(panels), len(panels)) as (figure, axes, buffer):
        for panel, metric in zip(axes, panels, strict=True):
            _scatter(panel, arms, metric)
        legend(axes[0])
        _save(figure, picture)
    caption = (
        "Attack success of each defence (further down is better) against over-refusal (further left) and exact answers "
        "(further right). The line above a mark ends at the worst carrier. Filled: on the front, where nothing else is "
        "as good in all three and better in one."
    )
    words = "; ".join(
        f"{at} {one.arm}: attack success {100 * one.rates['attack_success'].rate:.1f}%, "
        + ", ".join(f"{WORDS[metric]} {100 * one.rates[metric].rate:.1f}%" for metric in panels)
        + (", on the front" if one.on_front else "")
        for at, one in enumerate(arms)
    )
    return Drawn(finished(tag, f"Frontier of {family}", caption, words, buffer), picture.getvalue())


def _scatter(panel: Axes, arms: Sequence[Summary], metric: Metric) -> None:
    for at, one in enumerate(arms):
        x, y = one.rates[metric].rate, one.rates["attack_success"].rate
        colour = INK if at == 0 else CYCLE[(at - 1) % len(CYCLE)]
        if one.worst is not None and one.worst.rate > y:
            panel.plot([x, x], [y, one.worst.rate], color=colour, lw=1, alpha=0.6)
            panel.plot([x], [one.worst.rate], marker="_", color=colour, ms=7, mew=1.4)
        style: dict[str, Any] = {
            "marker": _MARKERS[at % len(_MARKERS)],
            "color": colour,
            "ms": 6.5,
            "mew": 1.3,
            "ls": "none",
        }
        panel.plot([x], [y], label=f"{at} {one.arm}", fillstyle="full" if one.on_front else "none", **style)
    panel.set_ylim(bottom=min(-0.02, panel.get_ylim()[0]))
    for axis in (panel.xaxis, panel.yaxis):
        few_ticks(axis)
        percent(axis)
    panel.margins(x=0.12)
    marks = [(one.rates[metric].rate, one.rates["attack_success"].rate) for one in arms]
    for at, (mark, offset) in enumerate(zip(marks, _free(panel, marks), strict=True)):
        panel.annotate(str(at), mark, offset, textcoords="offset points", fontsize=8, ha="center", va="center")
    panel.set_xlabel(WORDS[metric])
    panel.set_ylabel(WORDS["attack_success"])
    panel.grid(color=GREY, alpha=0.3, lw=0.6)


def _free(panel: Axes, marks: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Where each mark's number stands, in points from it: as near as other marks and numbers let it."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    at = np.array(marks, float)
    at = (at - (left, bottom)) / (right - left, top - bottom) * _PANEL
    angles = np.deg2rad([0, 180, 45, 135, -45, -135, 90, -90])
    offsets = [distance * np.array([np.cos(one), np.sin(one)]) for distance in (10, 16, 23) for one in angles]
    taken, found = list(at), []
    for place in at:
        crowds = [sum(np.hypot(*(place + offset - other)) < _APART for other in taken) for offset in offsets]
        best = offsets[int(np.argmin(crowds))]
        taken.append(place + best)
        found.append((float(best[0]), float(best[1])))
    return found


def moved(results: Results, family: str, judge: str, tag: str) -> Plot | None:
    """The difference that each defence makes to attack success, with its interval; None where there is none."""
    found = [
        (one.arm, tests["attack_success"])
        for one in results.summary(family, judge)
        if "attack_success" in (tests := results.tests_of(family, judge, one.arm))
    ]
    if not found:
        return None
    with rows_canvas([arm for arm, _ in found], "defence") as drawn:
        for (_, test), place in zip(found, drawn.places, strict=True):
            colour = BLUE if test.shown and test.difference < 0 else VERMILION if test.shown else GREY
            spread = np.maximum([[test.difference - test.low], [test.high - test.difference]], 0)
            drawn.axes.errorbar([test.difference], [place], xerr=spread, fmt="o", color=colour, ms=5, lw=1.5)
        drawn.axes.axvline(0, color=INK, lw=0.8)
        percent(drawn.axes.xaxis)
        drawn.axes.set_xlabel("change of attack success, points")
    caption = (
        "Against no defence on the same records, with 95 % intervals; further left is better. Grey: not told from no "
        "effect at 5 %, after Holm's correction for several defences."
    )
    words = "; ".join(
        f"{arm} {100 * test.difference:+.1f} points ({100 * test.low:+.1f} to {100 * test.high:+.1f})"
        for arm, test in found
    )
    return finished(tag, f"What defences do to attacks on {family}", caption, words, drawn.buffer)


def _save(figure: Figure, picture: BytesIO) -> None:
    figure.savefig(picture, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
