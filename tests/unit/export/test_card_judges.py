"""The card of an export that several judges have judged: what each says, how far they agree, and no free figure."""

import pytest
import yaml
from export_folder import documents, evaluation, records, write_folder
from huggingface_hub.repocard_data import model_index_to_eval_results

from safetykit.adapters.errors import InvalidArtifact
from safetykit.export.document.card import check_card, write_card
from safetykit.export.manifest import LAYOUT
from safetykit.export.parity.comparison import Comparison
from safetykit.toolkit.evaluation.judges.judge import opened
from safetykit.toolkit.evaluation.judges.judging import judged_by

OTHER = "regex:sorry|tamming"  # refuses everything


@pytest.fixture(scope="module")
def compared():
    judges = [opened("expected"), opened(OTHER)]
    before, after = (
        judged_by(evaluation(name, defended), records(), judges)
        for name, defended in (("tiny-vlm", False), ("tiny-export", True))
    )
    return Comparison.of(before, after, records(), "planted records")


def with_evaluation(value):
    """Without parity, whose flips are of other decisions."""
    return {**{name: one for name, one in documents().items() if name != LAYOUT.parity}, LAYOUT.evaluation: value}


@pytest.fixture(scope="module")
def folder(compared, tmp_path_factory):
    path = write_folder(tmp_path_factory.mktemp("judged") / "export", with_evaluation(compared))
    write_card(path)
    return path


def test_the_card_shows_what_every_judge_says(folder, compared):
    check_card(folder)
    for name in (LAYOUT.card, LAYOUT.report):
        text = (folder / name).read_text()
        assert "By each judge" in text and "over-refusal by the judge" in text
    card = (folder / LAYOUT.card).read_text()
    short = card.split("## In short")[1].split("Brackets")[0]
    assert "attack success by the judge" in short and "κ with expected" in short
    first, other = compared.judges()
    assert (
        other.rows[0].pairs["attack_success"].after.count == 0
    )  # it refuses everything, and so agrees by chance alone
    assert (first.before, first.after) == (None, None) and other.before == pytest.approx(0)


def test_the_front_matter_has_the_figures_of_every_judge_on_one_revision(folder, compared):
    header = yaml.safe_load((folder / LAYOUT.card).read_text().split("---\n")[1])
    _, results = model_index_to_eval_results(header["model-index"])
    assert {one.metric_args["judge"] for one in results} == {"expected", OTHER}
    assert {one.dataset_revision for one in results} == {compared.data.sha256}
    found = {
        one.metric_args["judge"]: one for one in results if (one.dataset_config, one.metric_type) == ("all", "refused")
    }
    assert found[OTHER].metric_value == 1 and found["expected"].metric_value < 1


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda side: side["judged"][1]["rows"][0]["metrics"]["refused"].update(rate=0.5),
            "do not follow from its outcomes",
        ),
        (lambda side: side["judged"][1]["outcomes"].popitem(), "judges other answers"),
        (lambda side: side["agreement"][0].update(kappa=0.9), "does not follow from their outcomes"),
        (lambda side: side.update(judged=[], agreement=[]), "by different judges"),
    ],
)
def test_a_figure_that_was_edited_is_refused(compared, tmp_path, spoil, said):
    value = compared.model_dump(mode="json")
    spoil(value["after"])
    path = write_folder(tmp_path / "export", with_evaluation(value))
    with pytest.raises(InvalidArtifact, match=said):
        write_card(path)
