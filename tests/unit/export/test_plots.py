"""Geometry of the plots: names never take the room of the data, and every axis says what it shows."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from drawing import drawn
from export_folder import comparison, parity, sweep
from matplotlib.figure import Figure

from safetykit.export.document.figures import ParityKind
from safetykit.export.document.plots import canvas, legend, rows_canvas, spectra
from safetykit.export.document.report_plots import SHOWN, gate_scores, rates
from safetykit.export.document.report_plots import parity as parity_plot
from safetykit.export.document.sections.sweep import SweepTable, sweep_plot


@pytest.fixture(autouse=True)
def _drawn():
    with drawn():
        yield


LONG = "3 rows padded, several pictures of other sizes, decoder.layers.31.mlp (SubspaceProjection)"


@pytest.fixture
def figures(monkeypatch):
    """The figures as they were saved, laid out."""
    found = []
    save = Figure.savefig

    def kept(figure, *arguments, **options):
        save(figure, *arguments, **options)
        if figure not in found:
            found.append(figure)

    monkeypatch.setattr(Figure, "savefig", kept)
    return found


def long_parity():
    checks = [check.model_copy(update={"case": f"{LONG}: {check.case}"}) for check in parity().checks]
    kinds = dict.fromkeys(check.kind for check in checks)
    return [
        ParityKind(kind, members := tuple(check for check in checks if check.kind == kind), members[0])
        for kind in kinds
    ]


def draw_all():
    """Every figure of a report, with the longest names that occur."""
    compared = comparison()
    rows = [
        replace(
            row,
            group=f"{row.group}/{LONG}",
            pairs={k: replace(v, group=f"{row.group}/{LONG}") for k, v in row.pairs.items()},
        )
        for row in compared.rows()
    ]
    yield from (rates(rows, shown) for shown in SHOWN)
    yield gate_scores(compared.after.decisions, {"0.score": LONG, "1.score": f"other {LONG}"})
    yield parity_plot(long_parity())
    yield sweep_plot(SweepTable.model_validate(sweep()), "sweep")
    yield spectra({str(layer): [9.0, 2.0, 1.0, 0.5] for layer in range(30)}, "spectra")


def test_the_data_keep_half_of_the_width(figures):
    assert all(plot for plot in draw_all())
    assert len(figures) == 7
    for figure in figures:
        for axes in figure.axes:
            assert axes.get_position().width >= 0.5


def test_every_axis_has_a_title(figures):
    list(draw_all())
    for figure in figures:
        assert all(axes.get_ylabel() for axes in figure.axes)
        assert figure.axes[-1].get_xlabel()


@pytest.mark.slow
def test_nothing_is_drawn_beyond_the_figure(figures):
    list(draw_all())
    for figure in figures:
        width, height = figure.get_size_inches() * figure.dpi
        box = figure.get_tightbbox().transformed(figure.dpi_scale_trans)
        assert box.x0 >= -1 and box.x1 <= width + 1 and box.y0 >= -1 and box.y1 <= height + 1


def test_short_names_stand_beside_their_rows_and_long_ones_above_them(figures):
    for names in (["text", "image"], ["text", LONG]):
        with rows_canvas(names, "records") as drawn:
            drawn.axes.plot([0, 1], drawn.places, "o")
    beside, above = (figure.axes[0] for figure in figures)
    assert [tick.get_text() for tick in beside.get_yticklabels()] == ["text", "image"]
    assert not above.get_yticklabels() and [text.get_text().split("\n")[0][:4] for text in above.texts] == [
        "text",
        LONG[:4],
    ]
    assert above.get_position().width > 0.8


def test_rows_keep_their_order_and_do_not_overlap():
    with rows_canvas(["a", LONG, "b"], "records") as drawn:
        pass
    first, second, third = drawn.places
    assert first > second > third > 0
    assert second < first - 0.5  # inches: the long name's lines lie between


@pytest.mark.parametrize("names", [["a", "b", "c", "d"], [LONG, LONG], [f"layer {at}" for at in range(20)]])
def test_a_legend_reads_by_rows_and_stays_within_the_width(figures, names):
    with canvas(4.0) as (_, (axes,), _buffer):
        for name in names:
            axes.plot([0, 1], [0, 1], label=name)
        legend(axes)
    figure = figures[0]
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.get_size_inches()[0] * figure.dpi
    columns = figure.legends[0]._ncols
    shown = [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]
    rows = -(-len(names) // columns)
    by_rows = [text for row in range(rows) for text in column_major(shown, columns, row)]
    assert by_rows == names


def column_major(shown, columns, row):
    """The entries of one row, where matplotlib filled columns first."""
    lengths = [len(shown) // columns + (at < len(shown) % columns) for at in range(columns)]
    starts = [sum(lengths[:at]) for at in range(columns)]
    return [shown[start + row] for start, length in zip(starts, lengths, strict=True) if row < length]


def test_every_figure_says_in_words_what_it_shows():
    for plot in draw_all():
        words = re.search(r'<svg role="img" aria-label="([^"]+)"', plot.svg).group(1)
        assert words.startswith(f"{plot.title}: ") and len(words) > len(plot.title) + 10
