"""The report: one well-formed file that needs nothing from elsewhere."""

from __future__ import annotations

import re

import pytest
from drawing import drawn
from export_folder import documents, evaluation, write_folder
from nesting import parse

from safetykit.adapters.errors import InvalidArtifact
from safetykit.export.document.card import check_card, write_card
from safetykit.export.document.figures import LATENCY, read_figures
from safetykit.export.document.report import render_report, same_report
from safetykit.export.document.report_plots import gate_scores
from safetykit.export.manifest import LAYOUT, read_manifest, write_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("report") / "export", documents())


@pytest.fixture(scope="module")
def html(folder):
    with drawn():
        return render_report(folder)


def test_it_is_well_formed_and_every_id_is_used_once(html):
    parser = parse(html)
    assert len(parser.ids) == len(set(parser.ids))
    assert {link.removeprefix("#") for link in parser.links} <= set(parser.ids)


def test_it_needs_nothing_from_elsewhere(html):
    parser = parse(html)
    assert parser.scripts == 0 and all(link.startswith("#") for link in parser.links)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)


def test_every_plot_is_there_and_described_in_words(html):
    described = re.findall(r'<svg role="img" aria-label="([^"]+)"', html)
    titles = ["Attack success", "Over-refusal", "Exact answers", "Gate scores", "Parity errors", "Settings tried"]
    titles.append("Singular values per layer")
    assert [text.split(":")[0] for text in described] == titles
    assert html.count("<figcaption>") == len(titles)


def test_plots_follow_the_colours_of_the_page(html):
    assert "currentColor" in html and "#010203" not in html


def test_the_same_folder_gives_the_same_bytes(folder, html):
    with drawn():
        assert render_report(folder) == html


def test_answers_cannot_become_markup(tmp_path):
    html = render_report(write_folder(tmp_path / "export", documents(text='<script>alert("x")</script> & <b>')))
    assert parse(html).scripts == 0
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; &lt;b&gt;" in html


def test_samples_are_the_first_of_every_carrier(folder, html):
    table = html.split("Sample answers")[1].split("</table>")[0]
    shown = re.findall(r"<code>([^<]+)</code>", table)
    assert shown[:5] == ["text-harmful-0", "text-harmful-1", "text-harmful-2", "text-harmless-0", "text-harmless-1"]
    assert len(shown) == 5 * len(read_figures(folder).comparison.carriers())


def test_all_trials_and_checks_are_listed(folder, html):
    figures = read_figures(folder)
    assert f"All {len(figures.attached[0]['sweep'].trials)} settings tried" in html
    settings = html.split("settings tried</summary>")[1].split("</table>")[0]
    assert settings.count("<tr") == 2 + len(figures.attached[0]["sweep"].trials)
    checks = html.split("checks</summary>")[1].split("</table>")[0]
    assert checks.count("<tr>") == 1 + len(figures.parity.checks)


def test_missing_documents_are_said_to_be_missing(tmp_path):
    html = render_report(write_folder(tmp_path / "export", {}))
    parse(html)
    assert "<svg" not in html
    for name in (LAYOUT.evaluation, LAYOUT.parity, LATENCY):
        assert f"no <code>{name}</code>" in html


def test_another_plotter_may_draw_in_other_bytes_but_not_say_other_things(html):
    other = re.sub(r"matplotlib [\d.]+", "matplotlib 0.0", html)
    drawn = other.replace("M ", "M 0 ", 1)
    assert same_report(drawn, html)
    assert not same_report(html.replace("M ", "M 0 ", 1), html)
    assert not same_report(drawn.replace("<td>passed</td>", "<td>better</td>"), html)


@pytest.mark.slow
def test_a_redrawn_plot_fails_the_check(tmp_path):
    folder = write_folder(tmp_path / "export", documents())
    write_card(folder)
    path = folder / LAYOUT.report
    path.write_text(path.read_text().replace("M ", "M 0 ", 1))
    write_manifest(read_manifest(folder, verify=False), folder)
    with pytest.raises(InvalidArtifact, match=LAYOUT.report):
        check_card(folder)


def test_of_many_gates_six_are_shown_spread_over_the_depth():
    names = {f"{at}.score": f"decoder.layers.{at} (Op)" for at in range(16)}
    decisions = [
        item.model_copy(update={"scores": {name: float(at) for at, name in enumerate(names)}})
        for item in evaluation("many", True).decisions
    ]
    with drawn():
        plot = gate_scores(decisions, names)
    shown = [int(layer) for layer in re.findall(r">decoder\.layers\.(\d+) \(Op\)<", plot.svg)]
    assert shown == [0, 3, 6, 9, 12, 15] and plot.caption.startswith("6 of 16 gates.")
