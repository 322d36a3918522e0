"""Plots of a channel map: heat maps of effects, and curves over the decoder's layers.

Signed values are drawn on a diverging map centred at 0, so colour is the sign; a dot marks a cell whose 95 % interval
leaves out 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import TYPE_CHECKING

import numpy as np

from ...toolkit.diagnosis.channel_map import ChannelMapInfo, ModalityEffects
from ...toolkit.diagnosis.terms import KINDS, Curve, Modality, Positions
from .axes import few_ticks, whole_numbers
from .plots import BLUE, CYCLE, GREY, INK, VERMILION, Plot, Rows, canvas, finished, heading, legend, rows_canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PLACES: dict[Positions, str] = {
    "all": "all tokens",
    "vision": "image tokens",
    "text": "text tokens",
    "last": "last prompt token",
}
_UNITS = {"silhouette": "−1 to 1", "class separation": "variance ratio", "mahalanobis": "std. deviations"}
_DPI = 200
_MARKERS = "os^Dv*"


@dataclass(frozen=True)
class DiagnosisPlot:
    """A plot for pages and as a picture.

    Attributes:
        png: on white, for places that show no SVG.
    """

    plot: Plot
    png: bytes


@contextmanager
def _canvas(height: float, panels: int = 1) -> Iterator[tuple[list[Axes], StringIO, BytesIO]]:
    """Like the report's figures; the PNG is in the second buffer after the block."""
    picture = BytesIO()
    with canvas(height, panels) as (figure, axes, buffer):
        yield axes, buffer, picture
        _save(figure, picture)


@contextmanager
def _rows_canvas(names: Sequence[str], title: str) -> Iterator[tuple[Rows, BytesIO]]:
    """The same with named rows."""
    picture = BytesIO()
    with rows_canvas(names, title) as drawn:
        yield drawn, picture
        _save(drawn.figure, picture)


def _save(figure: Figure, picture: BytesIO) -> None:
    figure.savefig(picture, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})


def diagnosis_plots(info: ChannelMapInfo) -> list[DiagnosisPlot]:
    """Everything a map can show; what the records did not give is left out."""
    plots = [effect_map(modality, effects) for modality, effects in info.effects.items()]
    plots += [neurons(modality, effects) for modality, effects in info.effects.items() if effects.neurons]
    plots.append(windows(info))
    areas = [curve for curve in info.separation if curve.measure.endswith("AUROC")]
    marks = {"safety layer": info.layers.safety, "fused layer": info.layers.fused}
    if areas:
        text = "Harmful against harmless records at the last prompt token; bands are 95 % intervals."
        plots.append(curves("separability", "Separability of harm", text, areas, "AUROC", marks))
    distances = [curve for curve in info.separation if not curve.measure.endswith("AUROC")]
    if distances:
        plots.append(geometry(distances))
    if info.readability:
        text = f"Share of pictures whose category a probe reads; always naming the commonest gives {info.chance:.2f}."
        plots.append(curves("readability", "Readability of pictures", text, info.readability, "accuracy", marks))
    contrast = [curve for curve in info.rise if curve.measure == "rise, contrast"]
    if contrast:
        plots.append(rise(contrast, info.layers.align))
    return plots


def effect_map(modality: Modality, effects: ModalityEffects) -> DiagnosisPlot:
    """NIE by layer and site, one panel per kind of position."""
    from matplotlib.colors import FuncNorm

    depth = 1 + max(site.layer for site in effects.sites)
    largest = max(abs(site.nie.value) for site in effects.sites) or 1.0
    norm = FuncNorm((_root, _square), vmin=-largest, vmax=largest)
    ticks = [sign * share * largest for sign, share in ((-1, 1), (-1, 0.25), (0, 0), (1, 0.25), (1, 1))]
    with _canvas(0.9 + 1.05 * len(effects.positions), len(effects.positions)) as (panels, buffer, picture):
        for axes, where in zip(panels, effects.positions, strict=True):
            grid = np.zeros((len(KINDS), depth))
            for site in (site for site in effects.sites if site.positions == where):
                row = KINDS.index(site.kind)
                grid[row, site.layer] = site.nie.value
                if site.nie.clear:
                    dark = abs(site.nie.value) > 0.4 * largest  # colours of a cell do not follow the page
                    axes.plot(site.layer, row, ".", ms=3, color="white" if dark else "black")
            image = axes.imshow(grid, cmap="RdBu_r", norm=norm, aspect="auto")
            axes.set_yticks(range(len(KINDS)), KINDS)
            axes.set_ylabel("site")
            heading(axes, _PLACES[where])
            whole_numbers(axes.xaxis)
            axes.tick_params(length=0)
        panels[-1].set_xlabel("decoder layer")
        bar = panels[0].figure.colorbar(image, ax=list(panels), label="indirect effect (NIE), nats", shrink=0.9)
        bar.set_ticks(ticks, labels=[f"{tick:+.1f}" if tick else "0" for tick in ticks])
        bar.minorticks_off()
    strongest = max(effects.sites, key=lambda site: abs(site.nie.value) if site.kind != "block" else 0.0)
    words = (
        f"total effect {effects.total.value:.2f}; strongest addition: {strongest.kind} of layer {strongest.layer} at "
        f"{_PLACES[strongest.positions]}, {strongest.nie.value:.2f}"
    )
    caption = (
        f"{len(effects.pairs)} {modality} pairs; total effect {effects.total.value:.2f} nats "
        f"({effects.total.low:.2f} to {effects.total.high:.2f}). Blue: with the benign activation the model is less "
        "inclined to refuse; red: more. Colour goes with the square root. A dot: the 95 % interval leaves out 0."
    )
    return _both(f"effects-{modality}", f"Indirect effects, {modality} harm", caption, words, buffer, picture)


def _root(values: np.ndarray) -> np.ndarray:
    """Square root that keeps the sign: small effects stay visible beside large ones."""
    return np.sign(values) * np.sqrt(np.abs(values))


def _square(values: np.ndarray) -> np.ndarray:
    return np.sign(values) * np.square(values)


def neurons(modality: Modality, effects: ModalityEffects) -> DiagnosisPlot:
    """Exact effect of verified neurons against their attribution."""
    with _canvas(3.4) as ((axes,), buffer, picture):
        groups = (
            ("drawn at random", [item for item in effects.neurons if item.rank is None], GREY, "s"),
            ("foremost", [item for item in effects.neurons if item.rank is not None], BLUE, "o"),
        )
        for name, items, colour, marker in groups:
            exact = np.array([item.nie.value for item in items])
            spread = [exact - [item.nie.low for item in items], [item.nie.high for item in items] - exact]
            given = [item.attribution for item in items]
            axes.errorbar(given, exact, yerr=np.maximum(spread, 0), fmt=marker, color=colour, ms=4, lw=1, label=name)
        ends = [item.attribution for item in effects.neurons]
        axes.axline((0, 0), slope=1, color=INK, lw=0.8, ls=":")
        axes.set_xlim(min(*ends, 0) * 1.08 - 1e-6, max(*ends, 0) * 1.08 + 1e-6)
        few_ticks(axes.xaxis)
        axes.set_xlabel("attribution, nats")
        axes.set_ylabel("exact NIE, nats")
        axes.grid(color=GREY, alpha=0.3, lw=0.6)
        legend(axes)
    first = effects.neurons[0]
    agree = "" if effects.rank_correlation is None else f"rank correlation {effects.rank_correlation:.2f}; "
    words = f"{agree}foremost: layer {first.layer}, neuron {first.neuron}, exact {first.nie.value:.2f}"
    caption = f"{agree.capitalize()}bars are 95 % intervals. On the dotted line the first-order estimate is exact."
    return _both(f"neurons-{modality}", f"Neurons, {modality} harm", caption, words, buffer, picture)


def windows(info: ChannelMapInfo) -> DiagnosisPlot:
    """Change of attacks and refusals when neighbouring layers are skipped."""
    whole, *rows = sorted(info.windows, key=lambda window: len(window.layers) and window.layers[0] + 1)
    labels = ["–".join(map(str, dict.fromkeys((window.layers[0], window.layers[-1])))) for window in rows]
    with _rows_canvas(labels, "skipped layers") as (drawn, picture):
        axes = drawn.axes
        for name, offset, colour, marker in (("attack_success", 0.05, VERMILION, "o"), ("refused", -0.05, BLUE, "D")):
            items = [getattr(window, f"{name}_change") for window in rows]
            centre = 100 * np.array([item.value for item in items])
            spread = [centre - [100 * item.low for item in items], [100 * item.high for item in items] - centre]
            style = {"fmt": marker, "color": colour, "ms": 4, "label": name.replace("_", " ")}
            axes.errorbar(centre, drawn.places + offset, xerr=np.maximum(spread, 0), **style)
        axes.axvline(0, color=INK, lw=0.8, ls=":")
        axes.set_xlabel("change of the share of records, percentage points")
        legend(axes)
    n = whole.attack_success.n
    caption = (
        f"{n} harmful records ({info.windows_on}); whole model: {100 * whole.attack_success.rate:.1f} % attack "
        f"success, {100 * whole.refused.rate:.1f} % refused. Both fall where skipping destroys the answers."
    )
    words = "; ".join(
        f"without {label}: attack success {window.attack_success_change.value:+.2f}, refused "
        f"{window.refused_change.value:+.2f}"
        for label, window in zip(labels, rows, strict=True)
    )
    return _both("windows", "Skipped layers", caption, words, drawn.buffer, picture)


def curves(
    tag: str, title: str, caption: str, shown: Sequence[Curve], label: str, marks: dict[str, int | None]
) -> DiagnosisPlot:
    """Measures over layers, with marked layers."""
    with _canvas(3.2) as ((axes,), buffer, picture):
        for at, curve in enumerate(shown):
            name = curve.records if len({item.measure for item in shown}) == 1 else f"{curve.records}, {curve.measure}"
            _draw(axes, curve, at, name.removesuffix(f" {label}"))
        for at, (name, layer) in enumerate(marks.items()):
            if layer is not None:
                axes.axvline(layer, color=INK, lw=1, ls=(":", "--")[at % 2], label=name)
        axes.set_ylabel(label)
        _finish(axes)
    words = "; ".join(_words(curve) for curve in shown)
    return _both(tag, title, caption, words, buffer, picture)


def geometry(shown: Sequence[Curve]) -> DiagnosisPlot:
    """Silhouette, class separation and Mahalanobis distance, each on its own scale."""
    measures = list(dict.fromkeys(curve.measure for curve in shown))
    with _canvas(0.8 + 1.6 * len(measures), len(measures)) as (panels, buffer, picture):
        for axes, measure in zip(panels, measures, strict=True):
            for at, curve in enumerate(curve for curve in shown if curve.measure == measure):
                _draw(axes, curve, at, curve.records)
            axes.set_ylabel(_UNITS.get(measure, "value"))
            heading(axes, measure)
            whole_numbers(axes.xaxis)
            axes.grid(color=GREY, alpha=0.3, lw=0.6)
        panels[-1].set_xlabel("decoder layer")
        legend(panels[0])
    words = "; ".join(_words(curve) for curve in shown)
    caption = "Harmful against harmless records at the last prompt token. The silhouette's band is a 95 % interval."
    return _both("geometry", "Distance of the classes", caption, words, buffer, picture)


def rise(shown: Sequence[Curve], align: Sequence[int]) -> DiagnosisPlot:
    """Contrast of refusal's rise through the LM head, the layers to align shaded."""
    with _canvas(3.0) as ((axes,), buffer, picture):
        if align:
            axes.axvspan(align[0] - 0.5, align[-1] + 0.5, color=GREY, alpha=0.18, lw=0, label="layers to align")
        for at, curve in enumerate(shown):
            _draw(axes, curve, at, curve.records)
        axes.axhline(0, color=INK, lw=0.8)
        axes.set_ylabel("rise of log P(refusal), nats")
        _finish(axes)
    words = "; ".join(_words(curve) for curve in shown)
    caption = "By how much more each layer raises refusal on harmful than on harmless requests, through the LM head."
    return _both("rise", "Where refusal rises", caption, words, buffer, picture)


def _draw(axes: Axes, curve: Curve, at: int, name: str) -> None:
    layers = np.arange(len(curve.values))
    colour = CYCLE[at % len(CYCLE)]
    axes.plot(layers, curve.values, marker=_MARKERS[at % len(_MARKERS)], color=colour, ms=4, lw=1.4, label=name)
    if curve.low is not None and curve.high is not None:
        axes.fill_between(layers, curve.low, curve.high, color=colour, alpha=0.18, lw=0)


def _finish(axes: Axes) -> None:
    axes.set_xlabel("decoder layer")
    whole_numbers(axes.xaxis)
    axes.grid(color=GREY, alpha=0.3, lw=0.6)
    legend(axes)


def _words(curve: Curve) -> str:
    best = int(np.argmax(curve.values))
    return f"{curve.records}, {curve.measure}: largest {curve.values[best]:.3g} in layer {best}"


def _both(tag: str, title: str, caption: str, words: str, buffer: StringIO, picture: BytesIO) -> DiagnosisPlot:
    return DiagnosisPlot(finished(tag, title, caption, words, buffer), picture.getvalue())
