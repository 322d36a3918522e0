"""``detector.json``: how well a detector's probe tells harmful from harmless records, and why it stands where it does.

Written by :mod:`safetykit.adapters.statistics.detector_report`, which says what each figure is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ....adapters.artifact.manifest import Strict
from ....adapters.section import Section
from ..axes import percent, whole_numbers
from ..plots import BLUE, CYCLE, GREEN, GREY, INK, PURPLE, VERMILION, Plot, canvas, finished

_PANELS = 6
_SHADES = (GREY, *CYCLE)


class Place(Strict):
    """Where a probe reads; see the module that writes it."""

    safety: int | None
    fused: int | None
    beside: tuple[int, ...] = ()

    @property
    def words(self) -> str:
        """For people."""
        if self.safety is not None:
            return f"s = {self.safety}, f = {self.fused}"
        if self.beside:
            return f"blocks {', '.join(map(str, [*self.beside, self.fused]))}"
        return "final norm" if self.fused is None else f"block {self.fused}"


class OutOfFold(Strict):
    """On fit records that the fold's probe had not seen."""

    loss: float | None
    auroc: float | None


class Curves(Strict):
    """One carrier's curves."""

    harmful: int
    harmless: int
    auroc: float | None
    average_precision: float | None
    roc: list[tuple[float, float]]
    precision_recall: list[tuple[float, float]]


class Histogram(Strict):
    """Counts of risks per carrier and label."""

    edges: list[float]
    counts: dict[str, dict[str, list[int]]]


class Tried(Place):
    """One place that was tried."""

    loss: float | None
    auroc: float | None
    calibration_loss: float | None = None
    calibration_auroc: float | None
    recall: float | None


class TriedOn(Strict):
    """Records that places were compared on."""

    fit: int
    calibration: int


class Spread(Strict):
    """A figure over several draws."""

    mean: float
    low: float
    high: float


class Learnt(Strict):
    """A share of the fit records."""

    fraction: float
    records: int
    draws: int
    auroc: Spread
    recall: Spread


class LeftOut(Strict):
    """A category or a carrier that the fit had not seen."""

    kind: str
    name: str
    harmful: int
    harmless: int
    auroc: float | None
    recall: float | None
    false_positive_rate: float | None


class Compared(Tried):
    """A detector of another kind."""

    detector: str


class DetectorReport(Strict):
    """The attachment."""

    false_positive_rate: float
    threshold: float
    place: Place
    out_of_fold: OutOfFold
    curves: dict[str, Curves]
    histogram: Histogram
    layers: list[Tried]
    tried_on: TriedOn | None = None
    learning_curve: list[Learnt]
    left_out: list[LeftOut]
    comparison: list[Compared]
    budgeted: bool = False  # then calibration records had no say in the place


def _plots(report: DetectorReport, tag: str) -> Iterator[Plot]:
    carriers = {name: found for name, found in report.curves.items() if found.roc}
    if carriers:
        yield _curves(carriers, report, tag)
    yield _histogram(report, tag)
    yield _learning(report, tag)
    pairs = [row for row in report.layers if row.safety is not None and row.auroc is not None]
    if len(pairs) > 1:
        yield _pairs(pairs, report, tag)


def _curves(carriers: dict[str, Curves], report: DetectorReport, tag: str) -> Plot:
    with canvas(6.4, 2) as (_, (roc, precision), buffer):
        for at, (name, found) in enumerate(carriers.items()):
            style = {"color": _SHADES[at % len(_SHADES)], "lw": 1.6, "ls": ("-", "--", "-.", ":")[at % 4]}
            roc.plot(*zip(*found.roc, strict=True), label=name, **style)
            precision.plot(*zip(*found.precision_recall, strict=True), **style)
        roc.axvline(report.false_positive_rate, color=INK, lw=1, ls=":")
        roc.set_xlabel("harmless refused")
        roc.set_ylabel("harmful refused")
        precision.set_xlabel("harmful refused")
        precision.set_ylabel("of the refused, harmful")
        for axes in (roc, precision):
            axes.set_xlim(-0.02, 1.02)
            axes.set_ylim(-0.02, 1.02)
            axes.grid(color=GREY, alpha=0.3, lw=0.6)
            for axis in (axes.xaxis, axes.yaxis):
                percent(axis)
        roc.figure.legend(loc="outside upper center", ncols=3)
    words = "; ".join(f"{name} AUROC {found.auroc:.3f}" for name, found in carriers.items() if found.auroc is not None)
    caption = f"Calibration records: {words}. The dotted line is the false-positive rate the threshold was set for."
    return finished(f"{tag}-curves", "Detector: ROC and precision–recall", caption, words, buffer)


def _histogram(report: DetectorReport, tag: str) -> Plot:
    counts = dict(list(report.histogram.counts.items())[:_PANELS])
    edges = np.array(report.histogram.edges)
    with canvas(0.8 + 1.4 * len(counts), len(counts)) as (_, panels, buffer):
        for axes, (carrier, labels) in zip(panels, counts.items(), strict=True):
            for label, colour, style in (("harmful", PURPLE, "-"), ("harmless", GREEN, "--")):
                axes.stairs(labels[label], edges, color=colour, ls=style, lw=1.6, label=label)
            axes.axvline(report.threshold, color=INK, lw=1, ls=":", label="threshold")
            axes.set_title(carrier, loc="left")
            axes.set_ylabel("records")
        panels[-1].set_xlabel("risk, log-odds")
        panels[0].figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    caption = "Calibration records; the outer bins hold all that lies beyond. Right of the dotted line is refused."
    words = f"threshold {report.threshold:.3g}"
    return finished(f"{tag}-histogram", "Detector: risks by carrier", caption, words, buffer)


def _learning(report: DetectorReport, tag: str) -> Plot:
    rows = report.learning_curve
    with canvas(3.4) as (_, (axes,), buffer):
        for name, colour, marker in (("auroc", BLUE, "o"), ("recall", VERMILION, "D")):
            found = [getattr(row, name) for row in rows]
            places = [row.fraction for row in rows]
            axes.plot(
                places,
                [one.mean for one in found],
                marker=marker,
                color=colour,
                lw=1.6,
                ms=4,
                label=name.replace("auroc", "AUROC"),
            )
            axes.fill_between(
                places, [one.low for one in found], [one.high for one in found], color=colour, alpha=0.2, lw=0
            )
        axes.set_xscale("log")
        axes.set_xticks([row.fraction for row in rows], [f"{100 * row.fraction:g}%" for row in rows])
        axes.minorticks_off()
        axes.set_xlabel("share of the fit records, log scale")
        axes.set_ylabel("AUROC; recall as a share")
        axes.set_ylim(top=1.02)
        axes.grid(color=GREY, alpha=0.3, lw=0.6)
        axes.legend()
    words = "; ".join(f"{100 * row.fraction:g}% AUROC {row.auroc.mean:.3f}" for row in rows)
    caption = (
        f"AUROC, and recall at {100 * report.false_positive_rate:g}% false positives, on calibration records; the band "
        "is the range over draws."
    )
    return finished(f"{tag}-learning", "Detector: learning curve", caption, words, buffer)


def _pairs(rows: list[Tried], report: DetectorReport, tag: str) -> Plot:
    safety, fused = (sorted({getattr(row, name) for row in rows}) for name in ("safety", "fused"))
    grid = np.full((len(fused), len(safety)), np.nan)
    for row in rows:
        grid[fused.index(row.fused), safety.index(row.safety)] = row.auroc
    with canvas(3.8) as (figure, (axes,), buffer):
        image = axes.imshow(grid, cmap="viridis", aspect="auto", origin="lower")
        axes.set_xticks(range(len(safety)), [str(layer) for layer in safety])
        axes.set_yticks(range(len(fused)), [str(layer) for layer in fused])
        axes.set_xlabel("safety layer s")
        axes.set_ylabel("fused layer f")
        whole_numbers(axes.xaxis)
        place = report.place
        if place.safety in safety and place.fused in fused:
            axes.plot(
                safety.index(place.safety), fused.index(place.fused), "o", mfc="none", mec=VERMILION, ms=14, mew=2
            )
        figure.colorbar(image, ax=axes, label="AUROC")
    best = max(rows, key=lambda row: row.auroc or 0.0)
    words = f"chosen {report.place.words}; highest AUROC {best.auroc:.3f} at {best.words}"
    on = f"{report.tried_on.fit} fit records" if report.tried_on else "fit records"
    caption = f"AUROC on {on} whose categories the probe had not seen. The circle is the chosen pair."
    return finished(f"{tag}-pairs", "Detector: safety and fused layers", caption, words, buffer)


DETECTOR = Section("detector", DetectorReport, lambda report, tag, draw: tuple(_plots(report, tag)))
