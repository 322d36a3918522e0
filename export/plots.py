"""The report's plots as inline SVG: the same figures give the same bytes, and colours follow the page.

Text stays text (selectable, read aloud) and takes the page's colour through ``currentColor``. The
data colours are the blue and vermilion of Okabe and Ito, which colour-blind readers tell apart and
which hold on light and dark ground; every series also has its own marker.
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
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ..toolkit.evaluate import Decision, Metric
from .comparison import GroupRow
from .sweep_table import SweepTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#888888"
_INK = "#010203"  # never otherwise used; replaced by currentColor
_WIDTH = 4.6  # inches; narrow, so that text keeps its size on a telephone
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "safetykit",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Plot:
    """An SVG element with what it says in words.

    Attributes:
        title: of the figure.
        caption: how to read it; also its accessible description.
        svg: the element.
    """

    title: str
    caption: str
    svg: str


@contextmanager
def _figure(height: float, axes: int = 1) -> Iterator[tuple[Figure, list[Axes], StringIO]]:
    """A figure without any global state; its SVG is in the buffer after the block."""
    buffer = StringIO()
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, list(figure.subplots(axes, squeeze=False).flat), buffer
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _plot(title: str, caption: str, buffer: StringIO, tag: str) -> Plot:
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # Several figures share one page: names must differ, and the caption is beside the picture already.
    svg = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{tag}-", svg)
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg.replace("<svg", f'<svg role="img" aria-labelledby="{tag}-caption"', 1)
    return Plot(title, caption, re.sub(r' (width|height)="[\d.]+pt"', "", svg.strip(), count=2))


def rates(rows: Sequence[GroupRow], metric: Metric, title: str, better: str) -> Plot | None:
    """Before and after per group with 95 % intervals; None when no group has the metric."""
    pairs = [row.pairs[metric] for row in rows if metric in row.pairs]
    if not pairs:
        return None
    with _figure(1.1 + 0.42 * len(pairs)) as (_, (axes,), buffer):
        places = np.arange(len(pairs))[::-1]
        for name, offset, colour, marker in (("before", 0.13, VERMILION, "o"), ("after", -0.13, BLUE, "D")):
            found = [getattr(pair, name) for pair in pairs]
            centre = np.array([rate.rate for rate in found])
            spread = [centre - [rate.low for rate in found], [rate.high for rate in found] - centre]
            axes.errorbar(
                centre, places + offset, xerr=np.maximum(spread, 0), fmt=marker, color=colour, ms=5, lw=1.5, label=name
            )
        axes.set_yticks(places, [pair.group for pair in pairs])
        axes.set_ylim(-0.6, len(pairs) - 0.4)
        axes.set_xlim(-0.03, 1.03)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(axis="x", color=GREY, alpha=0.3, lw=0.6)
        axes.figure.legend(loc="outside upper right", ncols=2)
    words = "; ".join(f"{p.group} {100 * p.before.rate:.1f} % before, {100 * p.after.rate:.1f} % after" for p in pairs)
    return _plot(title, f"{better} Bars are 95 % intervals. {words}.", buffer, metric)


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
    with _figure(0.7 + 1.5 * len(scores), len(scores)) as (_, panels, buffer):
        for axes, (name, labels) in zip(panels, sorted(scores.items()), strict=True):
            bins = np.histogram_bin_edges(np.concatenate([np.array(v, dtype=float) for v in labels.values()]), 30)
            for label, colour, style in (("harmful", VERMILION, "-"), ("harmless", BLUE, "--")):
                axes.hist(labels[label], bins, histtype="step", color=colour, ls=style, lw=1.6, label=label)
            axes.axvline(0, color=_INK, lw=1, ls=":", label="threshold")
            axes.set_title(name, loc="left")
            axes.set_ylabel("records")
        panels[-1].set_xlabel("score minus threshold")
        handles, names = panels[0].get_legend_handles_labels()
        panels[0].figure.legend(handles, names, loc="outside upper right", ncols=3)
    shares = "; ".join(
        f"{name} is open for {_share(labels['harmful'])} of harmful and {_share(labels['harmless'])} of harmless records"
        for name, labels in sorted(scores.items())
    )
    return _plot("Gate scores", f"A gate is open right of the dotted line. {shares}.", buffer, "gates")


def _share(values: Sequence[float]) -> str:
    return f"{100 * sum(value > 0 for value in values) / len(values):.1f} %" if values else "none"


def sweep(table: SweepTable) -> Plot:
    """Attack success against over-refusal of every trial, the chosen one and the unmodified model marked."""
    trials = [(trial["over_refusal"], trial["attack_success"]) for trial in table.trials]
    with _figure(3.6) as (_, (axes,), buffer):
        axes.plot(*zip(*trials, strict=True), "o", ms=4, color=GREY, alpha=0.5, mew=0, label="trial")
        before, best = table.undefended, table.best
        axes.plot(before["over_refusal"], before["attack_success"], "s", ms=8, color=VERMILION, label="unmodified")
        axes.plot(best["over_refusal"], best["attack_success"], "D", ms=8, color=BLUE, label="chosen")
        limit = before["over_refusal"] + table.allowed_cost
        axes.axvline(limit, color=_INK, lw=1, ls=":", label="allowed cost")
        axes.set_xlabel("over-refusal")
        axes.set_ylabel("attack success")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(color=GREY, alpha=0.3, lw=0.6)
        axes.figure.legend(loc="outside upper center", ncols=4, handletextpad=0.2, columnspacing=1.0)
    caption = (
        f"{len(trials)} trials on the calibration split; down and left is better. Chosen: attack success "
        f"{100 * best['attack_success']:.1f} %, over-refusal {100 * best['over_refusal']:.1f} %; unmodified: "
        f"{100 * before['attack_success']:.1f} % and {100 * before['over_refusal']:.1f} %. Right of the dotted line the "
        "allowed over-refusal is exceeded."
    )
    return _plot("Settings tried", caption, buffer, "sweep")


def spectra(values: Mapping[str, Sequence[float]]) -> Plot:
    """Singular values of the safety differences per layer, relative to the largest."""
    colours = matplotlib.colormaps["viridis"]
    with _figure(3.2) as (_, (axes,), buffer):
        for at, (layer, spectrum) in enumerate(sorted(values.items(), key=lambda item: int(item[0]))):
            relative = np.array(spectrum[:16]) / max(spectrum[0], 1e-30)
            colour = colours(0.15 + 0.7 * at / max(1, len(values) - 1))
            axes.plot(np.arange(1, len(relative) + 1), relative, marker="os^Dv"[at % 5], ms=4, color=colour, label=layer)
        axes.set_xlabel("singular value")
        axes.set_ylabel("relative to the largest")
        axes.set_ylim(0, 1.05)
        axes.grid(color=GREY, alpha=0.3, lw=0.6)
        axes.legend(title="layer", ncols=2)
    caption = "A steep fall means that one or few directions hold what separates harmful from harmless text."
    return _plot("Singular values per layer", caption, buffer, "spectra")
