"""The report's plots as inline SVG: the same figures give the same bytes, and colours follow the page.

Text stays text (selectable, read aloud) and takes the page's colour through ``currentColor``. The
data colours are those of Okabe and Ito, which colour-blind readers tell apart and which hold on light
and dark ground; every series also has its own marker or line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from markupsafe import escape
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ...toolkit.evaluation.evaluate import Decision, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..parity.comparison import GroupRow
    from .figures import ParityKind
    from .sections.sweep import SweepTable

BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#888888"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, "#E69F00", "#56B4E9")
INK = "#010203"  # never otherwise used; replaced by currentColor
_PANELS = 6
_WIDTH = 4.6  # inches; narrow, so that text keeps its size on a telephone
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "safetykit",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Plot:
    """An SVG element with what it says in words.

    Attributes:
        tag: names the figure in its page.
        title: of the figure.
        caption: how to read it.
        svg: the element; it carries its values in words for those who cannot see it.
    """

    tag: str
    title: str
    caption: str
    svg: str


@contextmanager
def canvas(height: float, axes: int = 1) -> Iterator[tuple[Figure, list[Axes], StringIO]]:
    """A figure without any global state, its axes, and the buffer that holds its SVG after the block.

    Args:
        height: in inches.
        axes: panels, one above the other.
    """
    buffer = StringIO()
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, list(figure.subplots(axes, squeeze=False).flat), buffer
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def finished(tag: str, title: str, caption: str, words: str, buffer: StringIO) -> Plot:
    """A figure's SVG made ready for a page.

    Args:
        words: what it shows, for those who cannot see it.
    """
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # Several figures share one page: their names must differ.
    svg = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{tag}-", svg)
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(f"{title}: {words}.")}"', 1)
    return Plot(tag, title, caption, re.sub(r' (width|height)="[\d.]+pt"', "", svg.strip(), count=2))


def rates(rows: Sequence[GroupRow], metric: Metric, title: str, better: str) -> Plot:
    """Before and after per group with 95 % intervals; a group without the metric keeps its empty line.

    So the figures of several metrics have the same lines and can be read side by side.
    """
    places = {row.group: len(rows) - 1 - at for at, row in enumerate(rows)}
    pairs = [row.pairs[metric] for row in rows if metric in row.pairs]
    with canvas(1.1 + 0.42 * len(rows)) as (_, (axes,), buffer):
        for name, offset, colour, marker in (("before", 0.13, VERMILION, "o"), ("after", -0.13, BLUE, "D")):
            found = [getattr(pair, name) for pair in pairs]
            centre = np.array([rate.rate for rate in found])
            spread = [centre - [rate.low for rate in found], [rate.high for rate in found] - centre]
            heights = [places[pair.group] + offset for pair in pairs]
            axes.errorbar(
                centre, heights, xerr=np.maximum(spread, 0), fmt=marker, color=colour, ms=5, lw=1.5, label=name
            )
        axes.set_yticks(list(places.values()), list(places))
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="x", color=GREY, alpha=0.3, lw=0.6)
        axes.figure.legend(loc="outside upper right", ncols=2)
    words = "; ".join(f"{p.group} {100 * p.before.rate:.1f}% before, {100 * p.after.rate:.1f}% after" for p in pairs)
    return finished(metric, title, f"{better} Bars are 95 % intervals.", words, buffer)


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
    with canvas(0.7 + 1.5 * len(scores), len(scores)) as (_, panels, buffer):
        for axes, (name, labels) in zip(panels, scores.items(), strict=True):
            bins = np.histogram_bin_edges(np.concatenate([np.array(v, dtype=float) for v in labels.values()]), 30)
            for label, colour, style in (("harmful", PURPLE, "-"), ("harmless", GREEN, "--")):
                axes.hist(labels[label], bins, histtype="step", color=colour, ls=style, lw=1.6, label=label)
            axes.axvline(0, color=INK, lw=1, ls=":", label="threshold")
            axes.set_title(name, loc="left")
            axes.set_ylabel("records")
        panels[-1].set_xlabel("score minus threshold")
        handles, names = panels[0].get_legend_handles_labels()
        panels[0].figure.legend(handles, names, loc="outside upper right", ncols=3)
    shares = "; ".join(
        f"{name} for {_share(labels['harmful'])} of harmful and {_share(labels['harmless'])} of harmless records"
        for name, labels in scores.items()
    )
    caption = f"{len(scores)} of {total} gates. A gate is open right of the dotted line: {shares}."
    return finished("gates", "Gate scores", caption, shares, buffer)


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Layer 10 comes after layer 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _share(values: Sequence[float]) -> str:
    return f"{100 * sum(value > 0 for value in values) / len(values):.1f}%" if values else "none"


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
    with canvas(1.1 + 0.3 * len(checks)) as (_, (axes,), buffer):
        places = np.arange(len(checks))[::-1]
        limits, errors = ([max(getattr(check, name), floor) for _, check in checks] for name in ("limit", "error"))
        axes.plot(limits, places, "|", ms=12, mew=2, color=VERMILION, label="limit")
        axes.plot(errors, places, "D", ms=5, color=BLUE, label="error")
        axes.set_xscale("log")
        axes.set_xlim(left=floor / 2)
        axes.set_yticks(places, [name for name, _ in checks])
        axes.set_xlabel("largest absolute error")
        axes.grid(axis="x", color=GREY, alpha=0.3, lw=0.6)
        axes.figure.legend(loc="outside upper right", ncols=2)
    words = "; ".join(f"{name}, error {check.error:.2g}, limit {check.limit:.2g}" for name, check in checks)
    caption = "Left of its bar an error passes; at the left edge it is 0."
    return finished("parity", "Parity errors", caption, words, buffer)


def sweep(table: SweepTable, tag: str) -> Plot:
    """Attack success against over-refusal of every trial, the chosen one and the unmodified model marked."""
    trials = [(trial["over_refusal"], trial["attack_success"]) for trial in table.trials]
    with canvas(3.6) as (_, (axes,), buffer):
        axes.plot(*zip(*trials, strict=True), "o", ms=4, color=GREY, alpha=0.8, mew=0, label="trial")
        before, best = table.undefended, table.best
        axes.plot(before["over_refusal"], before["attack_success"], "s", ms=8, color=VERMILION, label="unmodified")
        axes.plot(best["over_refusal"], best["attack_success"], "D", ms=8, color=BLUE, label="chosen")
        limit = before["over_refusal"] + table.allowed_cost
        axes.axvline(limit, color=INK, lw=1, ls=":", label="allowed cost")
        axes.set_xlabel("over-refusal")
        axes.set_ylabel("attack success")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
            axis.set_major_locator(MaxNLocator(5))
        axes.grid(color=GREY, alpha=0.3, lw=0.6)
        axes.figure.legend(loc="outside upper center", ncols=4, handletextpad=0.2, columnspacing=1.0)
    words = (
        f"chosen {100 * best['attack_success']:.1f}% attack success, {100 * best['over_refusal']:.1f}% over-refusal; "
        f"unmodified {100 * before['attack_success']:.1f}% and {100 * before['over_refusal']:.1f}%"
    )
    caption = (
        f"{len(trials)} settings tried on the calibration split; down and left is better. Right of the dotted line the "
        "allowed over-refusal is exceeded."
    )
    return finished(tag, "Settings tried", caption, words, buffer)


def spectra(values: Mapping[str, Sequence[float]], tag: str) -> Plot:
    """Singular values of the safety differences per layer, relative to the largest."""
    with canvas(3.2) as (_, (axes,), buffer):
        for at, (layer, spectrum) in enumerate(sorted(values.items(), key=lambda item: int(item[0]))):
            relative = np.array(spectrum[:16]) / max(spectrum[0], 1e-30)
            style = {"marker": "os^Dv"[at % 5], "color": CYCLE[at % len(CYCLE)], "ms": 4, "lw": 1.2}
            axes.plot(np.arange(1, len(relative) + 1), relative, label=layer, **style)
        axes.set_xlabel("singular value")
        axes.set_ylabel("relative to the largest")
        axes.set_ylim(0, 1.05)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=GREY, alpha=0.3, lw=0.6)
        axes.legend(title="layer", ncols=2)
    caption = "A steep fall means that one or few directions hold what separates harmful from harmless text."
    words = "; ".join(f"layer {layer}: largest {spectrum[0]:.3g}" for layer, spectrum in values.items())
    return finished(tag, "Singular values per layer", caption, words, buffer)
