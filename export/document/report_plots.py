"""The report's figures of an export itself: its evaluation, its gates and its parity."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...toolkit.evaluation.evaluate import Decision, Metric
from .axes import percent
from .plots import BLUE, GREEN, INK, PURPLE, VERMILION, Plot, canvas, finished, heading, legend, rows_canvas

if TYPE_CHECKING:
    from ..parity.comparison import GroupRow
    from .figures import ParityKind

_PANELS = 6
_OFFSET = 0.055  # inches between a row's middle and its two marks


@dataclass(frozen=True)
class Shown:
    """How a metric is shown.

    Attributes:
        axis: title of the axis that it is drawn on.
        better: how to read it.
    """

    metric: Metric
    title: str
    axis: str
    better: str


SHOWN = (
    Shown(
        "attack_success",
        "Attack success",
        "share of harmful requests answered",
        "Harmful requests answered; further left is better.",
    ),
    Shown(
        "over_refusal",
        "Over-refusal",
        "share of harmless requests refused",
        "Harmless requests refused; further left is better.",
    ),
    Shown(
        "exact",
        "Exact answers",
        "share of harmless requests answered exactly",
        "Harmless requests answered exactly; further right is better.",
    ),
)


def rates(rows: Sequence[GroupRow], shown: Shown) -> Plot:
    """Before and after per group with 95 % intervals; a group without the metric keeps its empty line.

    So the figures of several metrics have the same lines and can be read side by side.
    """
    found = [(at, row.pairs[shown.metric]) for at, row in enumerate(rows) if shown.metric in row.pairs]
    with rows_canvas([row.group for row in rows], "records, by carrier") as drawn:
        for name, offset, colour, marker in (("before", _OFFSET, VERMILION, "o"), ("after", -_OFFSET, BLUE, "D")):
            values = [getattr(pair, name) for _, pair in found]
            centre = np.array([rate.rate for rate in values])
            spread = [centre - [rate.low for rate in values], [rate.high for rate in values] - centre]
            heights = [drawn.places[at] + offset for at, _ in found]
            style = {"fmt": marker, "color": colour, "ms": 5, "lw": 1.5, "label": name}
            drawn.axes.errorbar(centre, heights, xerr=np.maximum(spread, 0), **style)
        drawn.axes.set_xlim(-0.03, 1.03)
        percent(drawn.axes.xaxis)
        drawn.axes.set_xlabel(shown.axis)
        legend(drawn.axes)
    words = "; ".join(
        f"{pair.group} {100 * pair.before.rate:.1f}% before, {100 * pair.after.rate:.1f}% after" for _, pair in found
    )
    return finished(shown.metric, shown.title, f"{shown.better} Bars are 95 % intervals.", words, drawn.buffer)


def gate_scores(decisions: Iterable[Decision], names: Mapping[str, str]) -> Plot | None:
    """How far each gate is open, harmful against harmless; None when no decision has a score.

    Args:
        names: what to call each score.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for decision in decisions:
        for name, value in decision.scores.items():
            scores.setdefault(names.get(name, name), {"harmful": [], "harmless": []})[decision.label].append(value)
    if not scores:
        return None
    total, names_shown = len(scores), sorted(scores, key=_natural)
    if total > _PANELS:  # spread over the depth, the first and the last among them
        names_shown = [names_shown[round(at * (total - 1) / (_PANELS - 1))] for at in range(_PANELS)]
    scores = {name: scores[name] for name in names_shown}
    with canvas(0.7 + 1.6 * len(scores), len(scores)) as (_, panels, buffer):
        for axes, (name, labels) in zip(panels, scores.items(), strict=True):
            bins = np.histogram_bin_edges(np.concatenate([np.array(v, dtype=float) for v in labels.values()]), 30)
            for label, colour, style in (("harmful", PURPLE, "-"), ("harmless", GREEN, "--")):
                axes.hist(labels[label], bins, histtype="step", color=colour, ls=style, lw=1.6, label=label)
            axes.axvline(0, color=INK, lw=1, ls=":", label="threshold")
            heading(axes, name)
            axes.set_ylabel("records")
        panels[-1].set_xlabel("score minus threshold, in the score's unit")
        legend(panels[0])
    shares = "; ".join(
        f"{name} for {_share(labels['harmful'])} of harmful and {_share(labels['harmless'])} of harmless records"
        for name, labels in scores.items()
    )
    caption = f"{len(scores)} of {total} gates. A gate is open right of the dotted line: {shares}."
    return finished("gates", "Gate scores", caption, shares, buffer)


def parity(kinds: Iterable[ParityKind]) -> Plot:
    """Error against limit on a log scale: every case of the logits, the nearest case of every other kind."""
    checks = []
    for kind in kinds:
        # A decision is counted, not measured: it has no place on this scale.
        if kind.name in ("logits", "adapter-off"):
            checks += [(f"{kind.name}: {check.case}", check) for check in kind.checks]
        elif kind.name != "decisions":
            checks.append((f"{kind.name}: worst of {len(kind.checks)}", kind.nearest))
    smallest = min((value for _, check in checks for value in (check.error, check.limit) if value > 0), default=1e-9)
    floor = smallest / 10  # where an error of exactly 0 is drawn
    with rows_canvas([name for name, _ in checks], "what is compared: case") as drawn:
        limits, errors = ([max(getattr(check, name), floor) for _, check in checks] for name in ("limit", "error"))
        drawn.axes.plot(limits, drawn.places, "|", ms=12, mew=2, color=VERMILION, label="limit")
        drawn.axes.plot(errors, drawn.places, "D", ms=5, color=BLUE, label="error")
        drawn.axes.set_xscale("log")
        drawn.axes.set_xlim(left=floor / 2)
        drawn.axes.set_xlabel("largest absolute error, log scale")
        legend(drawn.axes)
    words = "; ".join(f"{name}, error {check.error:.2g}, limit {check.limit:.2g}" for name, check in checks)
    caption = "Errors are in the unit of what is compared. Left of its bar an error passes; at the left edge it is 0."
    return finished("parity", "Parity errors", caption, words, drawn.buffer)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Layer 10 comes after layer 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _share(values: Sequence[float]) -> str:
    return f"{100 * sum(value > 0 for value in values) / len(values):.1f}%" if values else "none"
