"""The table of promises says what was measured, and what was not."""

import json
import re
from pathlib import Path

import pytest
from export_folder import documents, write_folder

import safetykit
from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.bench import promises
from safetykit.bench._fuzz.artifacts import KINDS
from safetykit.bench._promises import elsewhere
from safetykit.bench._promises.attempts import CASES
from safetykit.bench._promises.documents import edited, numbers
from safetykit.bench._promises.files import BAD_NAMES, PLANTED, opened_below
from safetykit.bench._promises.row import Figure, Place, Row, Tally
from safetykit.bench.kills import COMMANDS
from safetykit.export.document.card import write_card
from safetykit.export.document.provenance import OPTIONS, Built

ROOT = Path(safetykit.__file__).parent


def refuse(kind=InvalidArtifact):
    raise kind("manifest.json was changed.", "Get it again.")


def test_a_tally_holds_only_if_everything_was_refused_as_promised():
    tally = Tally()
    assert not tally.held  # nothing was tried
    tally.refused("one", refuse, InvalidArtifact, "manifest.json")
    assert tally.held and tally.figure("refused").measured == "1 of 1 refused"
    tally.refused("accepted", lambda: None)
    tally.refused("another kind", lambda: refuse(UsageError), InvalidArtifact)
    tally.refused("another file", refuse, InvalidArtifact, "README.md")
    tally.refused("untyped", lambda: 1 / 0)
    tally.accepted("good", lambda: refuse())
    tally.true("a claim", False)
    found = tally.figure("refused")
    assert found.measured == "1 of 7 refused, 1 errors untyped" and not found.held
    assert [one.partition(":")[0] for one in found.failures] == [
        *("accepted", "another kind", "another file", "untyped", "good", "a claim")
    ]


def test_a_row_that_cannot_be_measured_does_not_hold(tmp_path):
    row = Row("broken", "p", "t", lambda place: 1 / 0)
    found = promises.measured(row, Place(tmp_path))
    assert not found["held"] and found["measured"] == "not measured: ZeroDivisionError: division by zero"


def test_what_is_there_is_kept_and_what_does_not_hold_is_said(tmp_path, monkeypatch):
    asked = []
    rows = {
        name: Row(
            name,
            f"promise {name}",
            "all",
            lambda place, name=name: asked.append(name) or Figure("1 | 2", name == "a", ("why",)),
        )
        for name in "ab"
    }
    monkeypatch.setattr(promises, "ROWS", rows | {"c": Row("c", "promise c", "all", None)})
    assert promises.main(["-o", str(tmp_path), "--only", "a"]) == 0
    assert promises.main(["-o", str(tmp_path), "--only", "a", "b"]) == 1
    assert asked == ["a", "b"]
    text = (tmp_path / "promises.md").read_text()
    assert "| promise a (`a`) | all | 1 \\| 2 | yes |" in text
    assert "| promise b (`b`) | all | 1 \\| 2 | **no** |" in text and "- `b`: why" in text
    assert "| promise c (`c`) | all | not measured | – |" in text
    assert json.loads((tmp_path / "b.json").read_text())["failures"] == ["why"]


def test_there_are_as_many_cases_as_the_targets_say():
    assert len(set(BAD_NAMES)) == 40 and len(set(PLANTED)) == 20 and len(CASES) == 19


def test_every_row_is_in_the_table():
    assert promises.ROWS.keys() == promises._FOUND.keys()


def test_every_number_is_found_and_edited():
    value = {"a": [1, 0.5, True, "3"], "b": {"c": 0, "d": None}}
    assert list(numbers(value)) == [("a", 0), ("a", 1), ("b", "c")]
    assert edited(value, ("a", 1))["a"] == [1, 0.0, True, "3"] and edited(value, ("b", "c"))["b"]["c"] == 1
    assert value["a"][1] == 0.5


class Stand(Place):
    """A place whose export is made without a model, and of whose cases one is tried."""

    export = None

    def some(self, many, few):
        return 1


@pytest.mark.slow
def test_the_row_of_the_card_refuses_edits_and_accepts_an_honest_folder(tmp_path):
    place = Stand(tmp_path / "place")
    place.export = write_folder(tmp_path / "export", {**documents(), OPTIONS: {"precision": "fp32", "mode": "bake"}})
    write_card(place.export, Built(adapters=("ef" * 32,), packages={"safetykit": "0.1.0"}))
    found = promises.ROWS["card"].measure(place)
    assert found.held and not found.failures, found


@pytest.mark.parametrize("read", [True, False])
def test_what_is_opened_in_a_folder_is_seen(tmp_path, read):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("x")
    with opened_below(tmp_path / "in") as names:
        (tmp_path / "other").write_text("x")
        if read:
            (tmp_path / "in" / "file").read_text()
    assert names == ({"file"} if read else set())


def whole(row):
    """What the benchmark of a row writes when it is done."""
    if row == "fuzz":
        counts = dict.fromkeys(("untyped", "late", "ended", "events"), 0)
        return {name: {"mutants": elsewhere.MUTANTS, "peak_mb": 1.0, **counts} for name in KINDS}
    one = {"state": "new", "orphans": [], "same": True, "replaces": False, "typed": True, "processes": 0}
    one |= {"signal": "SIGKILL"}
    rounds = {"kills": elsewhere.ROUNDS, "full": elsewhere.POINTS}
    return {part: {what: [one] * count for what in COMMANDS} for part, count in rounds.items()}


@pytest.mark.parametrize(
    ("row", "missing"),
    [("fuzz", ()), ("kills", ()), ("fuzz", ("index",)), ("kills", ("kills", "eval")), ("kills", ("full",))],
)
def test_what_was_interrupted_goes_on_and_does_not_hold(tmp_path, monkeypatch, row, missing):
    found, asked = whole(row), []
    if missing:
        *owners, last = missing
        (found[owners[0]] if owners else found).pop(last)

    def bench(place, name, words, enough):
        asked.append(enough(found))
        return found

    monkeypatch.setattr(elsewhere, "bench", bench)
    assert promises.ROWS[row].measure(Place(tmp_path)).held is not bool(missing)
    assert asked == [not missing]


def test_the_threat_model_names_every_row_and_no_other():
    page = (ROOT / "docs" / "threat-model.md").read_text()
    cells = [line.split("|")[-2] for line in page.splitlines() if line.startswith("|")]
    named = {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}
    assert named <= promises.ROWS.keys() and [name for name in promises.ROWS if f"`{name}`" not in page] == []


def test_the_committed_table_has_every_row():
    text = (ROOT / "bench" / "results" / "promises.md").read_text()
    assert [name for name in promises.ROWS if f"(`{name}`)" not in text] == []
