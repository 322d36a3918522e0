"""Whatever is edited in a card, a report or their data is noticed, digests renewed or not."""

from __future__ import annotations

import json
import re

import pytest

from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.errors import InvalidArtifact
from safetykit.export.document.card import check_card, write_card
from safetykit.export.document.figures import LATENCY
from safetykit.export.manifest import LAYOUT, read_manifest, write_manifest


def edit_digit(path, pattern):
    """Change one digit where ``pattern`` first matches."""
    text = path.read_text()
    at = re.search(pattern, text).end() - 1
    assert text[at].isdigit()
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])


def reseal(folder):
    """What somebody would do who edits a file and the digests with it."""
    write_manifest(read_manifest(folder, verify=False), folder)


def test_what_was_written_passes_the_check(folder):
    check_card(folder)
    assert set(read_manifest(folder).files) >= {LAYOUT.card, LAYOUT.report}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        (LAYOUT.card, r"all carriers \| \d"),
        (LAYOUT.card, r"value: \d"),
        (LAYOUT.report, r"<td>\d"),
        (LAYOUT.evaluation, r'"count": \d'),
        (LAYOUT.parity, r'"error": \d'),
        (LATENCY, r'"rounds": \d'),
        ("sweep.json", r'"attack_success": \d'),
    ],
)
def test_one_edited_digit_fails_and_the_file_is_named(folder, name, pattern):
    edit_digit(folder / name, pattern)
    with pytest.raises(InvalidArtifact, match=name):
        check_card(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [LAYOUT.card, LAYOUT.report])
def test_an_edit_fails_even_with_its_digest_renewed(folder, name):
    edit_digit(folder / name, r"vlm-guard[^\d]*\d")
    reseal(folder)
    with pytest.raises(InvalidArtifact, match=f"{name} is not what the JSON files yield: line"):
        check_card(folder)


def test_rates_that_do_not_follow_from_the_decisions_are_refused(folder):
    path = folder / LAYOUT.evaluation
    value = json.loads(path.read_text())
    value["after"]["rows"][0]["metrics"]["attack_success"]["rate"] = 0.0
    path.write_text(json.dumps(value))
    reseal(folder)
    with pytest.raises(InvalidArtifact, match="do not follow from its decisions"):
        check_card(folder)


def edited_parity(folder, change):
    """The same of parity.json, whose figures somebody changed, with the digests renewed."""
    path = folder / LAYOUT.parity
    value = json.loads(path.read_text())
    change(value)
    path.write_bytes(canonical_json(value))
    reseal(folder)


def zero_errors(value):
    for check in value["checks"]:
        check["error"] = 0.0


def wide_limits(value):
    for check in value["checks"]:
        check["limit"] *= 2


def no_flips(value):
    value["flips"] = []


def other_flip(value):
    value["flips"][0] |= {"what": "outcome", "onnx": "nothing"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (zero_errors, "the error of logits .* is not that of its numbers"),
        (wide_limits, "the limit of logits .* is not that of its tolerance"),
        (no_flips, "the number of flipped decisions is not that of its list"),
        (other_flip, "is not what the export decided"),
        (lambda value: value.update(checks=[]), "its verdict is not that of its checks"),
        (lambda value: value["checks"].pop(0) and value.update(passed=False), "its verdict"),
    ],
)
def test_figures_of_parity_that_do_not_follow_from_one_another_are_refused(folder, change, words):
    edited_parity(folder, change)
    with pytest.raises(InvalidArtifact, match=rf"parity\.json was edited: .*{words}"):
        check_card(folder)


def test_a_verdict_that_does_not_follow_from_the_errors_is_refused(folder):
    path = folder / LAYOUT.parity
    value = json.loads(path.read_text())
    value["checks"][0]["error"] = 1.0
    path.write_text(json.dumps(value))
    reseal(folder)
    with pytest.raises(InvalidArtifact, match="parity.json was edited"):
        check_card(folder)


def test_sealing_does_not_bless_a_changed_graph(folder):
    (folder / LAYOUT.decoder).write_bytes(b"other")
    with pytest.raises(InvalidArtifact, match=r"decoder\.onnx was changed"):
        write_card(folder)


def test_sealing_does_not_adopt_a_stray_file(folder):
    (folder / "extra.bin").write_bytes(b"x")
    with pytest.raises(InvalidArtifact, match=r"extra\.bin is no part of the export"):
        write_card(folder)
