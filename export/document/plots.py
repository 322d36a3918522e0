"""How the plots of card and report are drawn: inline SVG, the same figures in the same bytes, colours of the page.

Text stays text (selectable, read aloud) and takes the page's colour through ``currentColor``. The
data colours are those of Okabe and Ito, which colour-blind readers tell apart and which hold on light
and dark ground; every series also has its own marker or line. Every axis has a title with its unit.

Names never take the room of the data: a legend wraps below the width of the figure, and names of rows
that are long stand above their rows, see :func:`rows_canvas`.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import escape

from .axes import whole_numbers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


BLUE, VERMILION, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#888888"
CYCLE = (BLUE, VERMILION, GREEN, PURPLE, "#E69F00", "#56B4E9")
INK = "#010203"  # never otherwise used; replaced by currentColor
_WIDTH = 4.6  # inches; narrow, so that text keeps its size on a telephone
_SIZE, _LEGEND_SIZE = 10, 9  # points
_EM = 0.6 / 72  # inches that a character of one point takes
_NAMES = 0.3  # the share of the width that names beside their rows may take
_LINE, _ROW, _GAP = 0.19, 0.24, 0.14  # inches: a line of a name, what is drawn in a row, and between rows
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "safetykit",
    "font.family": "DejaVu Sans",
    "font.size": _SIZE,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": _SIZE,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": _LEGEND_SIZE,
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


@dataclass(frozen=True)
class Rows:
    """Axes with named rows, the first one on top.

    Attributes:
        places: where each row's data lie on the y axis, which is in inches.
    """

    figure: Figure
    axes: Axes
    places: np.ndarray
    buffer: StringIO


@contextmanager
def canvas(height: float, axes: int = 1) -> Iterator[tuple[Figure, list[Axes], StringIO]]:
    """A figure without any global state, its axes, and the buffer that holds its SVG after the block.

    Args:
        height: in inches.
        axes: panels, one above the other.
    """
    import matplotlib
    from matplotlib.figure import Figure

    buffer = StringIO()
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        yield figure, list(figure.subplots(axes, squeeze=False).flat), buffer
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


@contextmanager
def rows_canvas(names: Sequence[str], title: str) -> Iterator[Rows]:
    """A figure with one row a name: beside the row where all names are short, else above it, wrapped.

    Args:
        names: of the rows, from top to bottom.
        title: of the y axis: what the names name.
    """
    beside = max((_inches(name, _SIZE) for name in names), default=0.0) <= _NAMES * _WIDTH
    wrapped = [name if beside else wrap(name, 0.86 * _WIDTH, _SIZE) for name in names]
    heights = [_ROW + _GAP + (0 if beside else _LINE * (name.count("\n") + 1)) for name in wrapped]
    tops = sum(heights) - np.concatenate([[0.0], np.cumsum(heights)[:-1]])
    places = tops - np.array(heights) + _GAP / 2 + _ROW / 2
    with canvas(1.1 + max(sum(heights), 3 * _ROW)) as (figure, (axes,), buffer):
        axes.set_ylim(0, max(sum(heights), _ROW))
        if beside:
            axes.set_yticks(places, wrapped)
        else:
            axes.set_yticks([])
            for name, top in zip(wrapped, tops, strict=True):
                axes.annotate(name, (0.01, top - _GAP / 2), xycoords=axes.get_yaxis_transform(), va="top")
        axes.set_ylabel(title)
        axes.grid(axis="x", color=GREY, alpha=0.3, lw=0.6)
        yield Rows(figure, axes, places, buffer)


def legend(panel: Axes, **options: Any) -> None:
    """What the marks of ``panel`` mean, above the figure, in as many columns as its width holds."""
    handles, names = panel.get_legend_handles_labels()
    names = [wrap(name, _WIDTH - 0.6, _LEGEND_SIZE) for name in names]
    # A column holds its handle and the gap to the next beside its widest name.
    widths = [0.5 + max(_inches(line, _LEGEND_SIZE) for line in name.split("\n")) for name in names]
    columns = next(
        count
        for count in range(max(len(names), 1), 0, -1)
        if count == 1 or sum(max(widths[at::count]) for at in range(count)) <= _WIDTH
    )
    # Matplotlib fills column by column; reading goes row by row.
    order = [at for first in range(columns) for at in range(first, len(names), columns)]
    style = {"handletextpad": 0.4, "columnspacing": 1.0, "handlelength": 1.5, **options}
    panel.figure.legend(
        [handles[at] for at in order], [names[at] for at in order], loc="outside upper left", ncols=columns, **style
    )


def heading(panel: Axes, text: str) -> None:
    """A panel's title, wrapped to the figure's width."""
    panel.set_title(wrap(text, 0.8 * _WIDTH, _SIZE), loc="left")


def wrap(text: str, inches: float, size: float) -> str:
    """``text`` in lines of at most ``inches``, at ``size`` points; longer words are broken."""
    return "\n".join(textwrap.wrap(text, max(int(inches / (size * _EM)), 8))) or text


def _inches(text: str, size: float) -> float:
    return len(text) * size * _EM


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


def spectra(values: Mapping[str, Sequence[float]], tag: str) -> Plot:
    """Singular values of the safety differences per layer, relative to the largest."""
    with canvas(3.2) as (_, (axes,), buffer):
        for at, (layer, spectrum) in enumerate(sorted(values.items(), key=lambda item: int(item[0]))):
            relative = np.array(spectrum[:16]) / max(spectrum[0], 1e-30)
            style = {"marker": "os^Dv"[at % 5], "color": CYCLE[at % len(CYCLE)], "ms": 4, "lw": 1.2}
            axes.plot(np.arange(1, len(relative) + 1), relative, label=f"layer {layer}", **style)
        axes.set_xlabel("singular value, counted from the largest")
        axes.set_ylabel("value relative to the largest")
        axes.set_ylim(0, 1.05)
        whole_numbers(axes.xaxis)
        axes.grid(color=GREY, alpha=0.3, lw=0.6)
        legend(axes)
    caption = "A steep fall means that one or few directions hold what separates harmful from harmless text."
    words = "; ".join(f"layer {layer}: largest {spectrum[0]:.3g}" for layer, spectrum in values.items())
    return finished(tag, "Singular values per layer", caption, words, buffer)
