"""The card of the real VLM says what the committed results say, and results of two models never share a table."""

import json
import shutil

import card
import pytest
from gates import opened

from safetykit.toolkit.evaluation.evaluate import Decision


def test_the_committed_card_is_what_the_committed_results_say():
    assert card.CARD.read_text() == card.render(card.HERE / "results"), "run python bench/real/card.py"


def test_the_page_of_results_has_the_table_of_the_committed_results():
    page = (card.HERE.parents[1] / "docs/results.md").read_text()
    assert page.split(card.MARK)[1].strip() == card.short(card.load(card.HERE / "results"))


def test_the_results_are_those_of_the_published_checkpoint():
    published = json.loads((card.HERE / "parts/parts.json").read_text())["fingerprint"]
    for name, result in card.load(card.HERE / "results").items():
        assert result["identity"][0] == published, name


def test_results_of_two_models_are_refused(tmp_path):
    shutil.copytree(card.HERE / "results", tmp_path / "results")
    file = tmp_path / "results/undefended.json"
    result = json.loads(file.read_text())
    file.write_text(json.dumps(result | {"identity": ["another", *result["identity"][1:]]}))
    with pytest.raises(SystemExit, match="different models"):
        card.load(tmp_path / "results")


def decision(number, label, **scores):
    return Decision(id=str(number), carrier="image", label=label, tags=(), text="", outcome="answered", scores=scores)


def test_gates_are_counted_by_the_detector_where_there_is_one():
    made = [decision(at, "harmful", **{"0.score": -1.0, "risk": at - 1.0}) for at in range(4)]
    made += [decision(at, "harmless", **{"0.score": 1.0, "risk": -2.0 - at}) for at in range(5)]
    row = opened(made)["image"]
    assert (row["harmful"]["count"], row["harmful"]["n"]) == (2, 4)
    assert (row["harmless"]["count"], row["harmless"]["n"]) == (0, 5)
    assert row["auroc"] == 1.0
    assert opened(made)["text"] == {}


def test_gates_alone_are_counted_by_their_score():
    row = opened([decision(0, "harmful", **{"0.score": 2.0}), decision(1, "harmful", **{"0.score": -2.0})])["image"]
    assert row["harmful"]["rate"] == 0.5 and "auroc" not in row and "harmless" not in row
