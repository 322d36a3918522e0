"""The HTML report: one file with plots and full tables, readable without a network.

Like the card it is a pure function of the export folder's JSON files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup

from ...toolkit.evaluation.evaluate import Decision
from ..manifest import LAYOUT
from ..parity.comparison import Comparison
from . import plots
from .figures import LATENCY, Figures, read_figures
from .plots import Plot
from .rendering import html_templates
from .report_plots import SHOWN, gate_scores, parity, rates
from .sections import sections

_SAMPLES = {"harmful": 3, "harmless": 2}  # of every carrier
_LONGEST = 300  # characters of an answer
_SVG = re.compile(r"<svg\b.*?</svg>", re.DOTALL)
_PLOTTER = re.compile(r'<meta name="generator" content="[^"]*">')


@dataclass(frozen=True)
class Sample:
    """One record's answers."""

    carrier: str
    label: str
    id: str
    before: Decision
    after: Decision


def render_report(folder: Path) -> str:
    """The report's HTML.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: a JSON file is damaged; named.
    """
    return render_report_from(read_figures(Path(folder)))


def render_report_from(figures: Figures) -> str:
    """See :func:`render_report`."""
    return (
        html_templates()
        .get_template("report.html.jinja")
        .render(
            figures=figures,
            plots={name: _Drawn(plot) for name, plot in _plots(figures)},
            drawn={
                at: {name: _drawn(name, value, at) for name, value in found.items()}
                for at, found in figures.attached.items()
            },
            samples=tuple(_samples(figures.comparison)) if figures.comparison else (),
            samples_per_carrier=_SAMPLES,
            longest=_LONGEST,
            layout=LAYOUT,
            latency_file=LATENCY,
            generator=_generator(),
        )
    )


def same_report(found: str, yielded: str) -> bool:
    """Whether a report is what the JSON yields.

    Another version of matplotlib draws the same figures in other bytes; then all but the drawings is compared.
    """
    if found == yielded:
        return True
    drawn_here = f'content="{_generator()}"' in found
    return not drawn_here and _without_drawings(found) == _without_drawings(yielded)


class _Drawn:
    """A plot whose SVG the template may put in as it is."""

    def __init__(self, plot: Plot) -> None:
        self.title, self.caption, self.svg = plot.title, plot.caption, Markup(plot.svg)


def _drawn(name: str, value: Any, at: int) -> list[_Drawn]:
    """The figures of one attachment."""
    return [_Drawn(plot) for plot in sections()[name].plots(value, f"{name}-{at}", plots)]


def _plots(figures: Figures) -> Iterator[tuple[str, Plot]]:
    if comparison := figures.comparison:
        rows = comparison.rows()
        for shown in SHOWN:
            yield shown.metric, rates(rows, shown)
        if plot := gate_scores(comparison.after.decisions, figures.gate_names):
            yield "gates", plot
    if figures.parity:
        yield "parity", parity(figures.parity_kinds())


def _samples(comparison: Comparison) -> Iterator[Sample]:
    """The first records of every carrier and label, in the order of the data: not picked by their answers."""
    after = {item.id: item for item in comparison.after.decisions}
    for carrier in comparison.carriers():
        for label, count in _SAMPLES.items():
            members = [d for d in comparison.before.decisions if d.carrier == carrier and d.label == label]
            for decision in members[:count]:
                yield Sample(carrier, label, decision.id, decision, after[decision.id])


def _generator() -> str:
    return f"safetykit with matplotlib {matplotlib.__version__}"


def _without_drawings(html: str) -> str:
    return _PLOTTER.sub("", _SVG.sub("", html))
