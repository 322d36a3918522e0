"""What each method's fit attaches is shown in card and report: made by the fits themselves, on planted data."""

import numpy as np
import pytest
import torch
from drawing import drawn
from export_folder import documents, write_folder
from matplotlib.figure import Figure
from planted import PlantedExample
from planted_tokens import PlantedTokens, token_records

from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.care.settings import CARE
from safetykit.adapters.errors import InvalidArtifact
from safetykit.adapters.statistics.detector import Features
from safetykit.adapters.statistics.detector_report import Detector, describe, row_of
from safetykit.adapters.statistics.probe import Metric
from safetykit.export.document.card import check_card, write_card
from safetykit.export.document.report import render_report
from safetykit.export.document.sections import sections
from safetykit.export.manifest import LAYOUT

pytestmark = pytest.mark.slow

TRAINING = {
    "steps": [1, 2, 3, 4],
    "terms": {"loss": [4.0, 3.0, 2.5, 2.0], "answer": [1.0, 0.9, 0.7, 0.5]},
    "lr": [1e-3] * 4,
    "seconds": 12.5,
    "device": "cpu",
    "precision": "float32",
    "parameters": 4096,
    "targets": ["projector.linear_2"],
}
NEAR = {"caption": 0.9, "unrelated": 0.8, "centred_caption": 0.3, "centred_unrelated": -0.1}
ALIGNMENT = {"3": {"before": NEAR, "after": {**NEAR, "centred_caption": 0.75}}}


def detector() -> dict:
    random = np.random.default_rng(0)
    records, rows = [], []
    for split, count in (("fit", 160), ("calibration", 120)):
        for at in range(count):
            harmful = at % 2 == 0
            carrier = ("text", "image")[at % 4 // 2]
            record = PlantedExample(f"{split}{at}", "harmful" if harmful else "harmless", carrier, split)
            object.__setattr__(record, "category", f"kind {at % 5}")
            records.append(record)
            rows.append(random.normal(2.0 * harmful, 1.0, 8))
    states = torch.tensor(np.array(rows), dtype=torch.float32)
    places = [(0, 1), (0, 2), (1, 2), Site("final_norm"), Site.block(2)]
    features = Features(tuple(records), {place: states + 0.01 * at for at, place in enumerate(places)})
    kind = Detector(Metric.of("hidden", torch.randn(20, 8)), 0.02)
    fit, calibration = features.where(split="fit"), features.where(split="calibration")
    tried = [kind.fit(place, fit, calibration) for place in places[:3]]
    part = {"fit": 160, "calibration": 120}
    return describe(kind, tried[1], [row_of(one, calibration) for one in tried], part, fit, calibration)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, planted_map):
    attached = {
        "care.json": CARE(layers=(1, 2), rank=2, fusion="sequential", contrast="carrier", site="mlp")
        .fit(PlantedTokens(), token_records())
        .attachments["care"],
        "detector.json": detector(),
        "training.json": TRAINING,
        "alignment.json": ALIGNMENT,
        "retrieval.json": {"k": 3, "prefix": True, "external": False, "count": 302, "index": "ab" * 32},
        "retrieval_accuracy.json": {
            "among": 302,
            "unseen_picture": {"n": 40, "top1": 20, "top5": 31},
            "unseen_caption": None,
        },
        "diagnosis.json": planted_map.info,
    }
    made = write_folder(tmp_path_factory.mktemp("sections") / "export", {**documents(), **attached})
    write_card(made)
    return made


def test_every_section_stands_in_card_and_report(folder):
    card, report = ((folder / name).read_text() for name in (LAYOUT.card, LAYOUT.report))
    for words in (
        "**The causal map.**",
        "**Why these settings.**",
        "**The subspaces.**",
        "**How well the probe tells.**",
        "**Training.**",
        "**Alignment.**",
        "**Retrieval.**",
        "own caption comes first",
    ):
        assert words in card
    for title in (
        "Indirect effects",
        "Settings tried",
        "Safety subspaces: spectra",
        "Detector: ROC",
        "Detector: risks",
        "Detector: learning curve",
        "Detector: safety and fused layers",
        "Training: losses",
        "Pictures near their",
    ):
        assert f"<h3>{title}" in report
    check_card(folder)


def test_the_names_inside_the_drawings_of_a_page_differ(folder):
    import re

    with drawn():
        names = re.findall(r'\bid="([^"]+)"', render_report(folder))
    assert len(names) == len(set(names)) > 50


def test_counts_of_found_captions_become_shares(folder, tmp_path):
    assert "| 40 | 50.0% (35.2–64.8) | 77.5% (" in (folder / LAYOUT.card).read_text()
    wrong = {"among": 9, "unseen_picture": {"n": 4, "top1": 5, "top5": 5}, "unseen_caption": None}
    spoiled = write_folder(tmp_path / "export", {**documents(), "retrieval_accuracy.json": wrong})
    with pytest.raises(InvalidArtifact, match="retrieval_accuracy.json is not valid"):
        write_card(spoiled)


def test_figures_in_the_card_are_those_of_the_fit(folder):
    card, found = (folder / LAYOUT.card).read_text(), detector()
    assert f"{found['curves']['text']['auroc']:.3f}" in card
    assert "0.3 → 0.75" in card and "| loss | 4 | 2 |" in card


@pytest.mark.parametrize("name", sorted(sections()))
def test_a_damaged_attachment_is_refused_by_name(name, tmp_path):
    folder = write_folder(tmp_path / "export", {**documents(), f"{name}.json": {"nonsense": [1]}})
    with pytest.raises(InvalidArtifact, match=f"{name}.json is not valid"):
        write_card(folder)


def test_every_axis_of_every_section_has_a_title(folder, monkeypatch):
    figures, save = [], Figure.savefig

    def kept(figure, *arguments, **options):
        save(figure, *arguments, **options)
        figures.append(figure)

    monkeypatch.setattr(Figure, "savefig", kept)
    render_report(folder)
    assert len(figures) > 10
    for figure in figures:
        assert all(axes.get_ylabel() for axes in figure.axes), [axes.get_title() for axes in figure.axes]
        assert any(axes.get_xlabel() for axes in figure.axes)
