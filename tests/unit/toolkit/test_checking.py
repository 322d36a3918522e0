"""A check tells every fault at once, with its place and what mends it; and asks the methods themselves."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from safetykit.adapters.errors import UsageError
from safetykit.toolkit.commands.data_check import _lacks
from safetykit.toolkit.data.checking import check_records
from safetykit.toolkit.data.template import write_template

BASE = {"prompt": "what is this?", "label": "harmless", "split": "fit"}


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def row(name, **changes):
    return {"id": name, **BASE, "prompt": f"what is {name}?", **changes}


def test_every_fault_is_told_with_its_place_and_its_fix(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "words.png").write_text("words")
    rows = [
        row("good", image="a.png"),
        "{",
        {"id": "b", "label": "harmles", "split": "fit", "promt": "what?"},
        row("good"),
        row("c", image="gone.png"),
        row("d", image="words.png"),
        row("e", image="a.png#xywh=2,2,9,9"),
        row("f", prompt=" "),
        row("g", tags="look-alike"),
        row("h", split="training"),
        row("k", carrier="image"),
    ]
    path = str(write(tmp_path / "r.jsonl", *rows))
    write(tmp_path / "s.jsonl", row("i"), {**row("j"), "lable": "x"})
    found = check_records(tmp_path)
    told = {(fault.file.rpartition("/")[2], fault.row, fault.field): fault for fault in found.faults}
    assert [key[:3] for key in told] == [
        ("r.jsonl", 2, ""),
        ("r.jsonl", 3, "prompt"),
        ("r.jsonl", 3, "label"),
        ("r.jsonl", 3, "promt"),
        ("r.jsonl", 4, "id"),
        ("r.jsonl", 5, "image"),
        ("r.jsonl", 6, "image"),
        ("r.jsonl", 7, "image"),
        ("r.jsonl", 8, "prompt"),
        ("r.jsonl", 9, "tags"),
        ("r.jsonl", 10, "split"),
        ("r.jsonl", 11, "image"),
        ("s.jsonl", 2, "lable"),
    ]
    assert told["r.jsonl", 2, ""].reason == "is not JSON"
    assert told["r.jsonl", 3, "prompt"].reason == "is missing"
    assert told["r.jsonl", 3, "label"].reason == "cannot be 'harmles'"
    assert "It is 'harmful' or 'harmless'. Did you mean 'harmless'?" in told["r.jsonl", 3, "label"].fix
    assert told["r.jsonl", 3, "promt"].fix == "Did you mean 'prompt'?"
    assert told["r.jsonl", 4, "id"].reason == f"'good' is that of row 1 of {path}, too"
    assert "gone.png" in told["r.jsonl", 5, "image"].reason
    assert "cannot be read as a picture" in told["r.jsonl", 6, "image"].reason
    assert "leaves the picture of 4x4" in told["r.jsonl", 7, "image"].reason
    assert all(fault.fix for fault in found.faults)
    assert found.counts == {"fit/image/harmless": 1, "fit/text/harmless": 1}


def test_a_file_whose_columns_are_wrong_does_not_hide_the_others(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.Table.from_pylist([{"id": "a", "question": "what?"}]), tmp_path / "a.parquet")
    write(tmp_path / "b.jsonl", row("b"), "[]")
    found = check_records(tmp_path)
    assert [fault.row for fault in found.faults] == [0, 2]
    assert "has the columns id, question" in found.faults[0].reason and found.counts.total() == 1


def test_what_misleads_is_warned_of(tmp_path):
    rows = [
        row("a", pair="nobody"),
        row("b", pair="c"),
        row("c"),
        row("d", pair="e"),
        row("e", label="harmful", split="test", pair="d"),
        row("f", group="kites"),
        row("g", group="kites", split="test"),
        row("h", prompt="one and the same"),
        row("i", prompt="one and the same", split="test"),
        row("j", prompt="one and the same", label="harmful"),
    ]
    found = check_records(write(tmp_path / "r.jsonl", *rows))
    assert not found.faults
    assert {(fault.row, fault.field, fault.reason) for fault in found.warnings} == {
        (1, "pair", "there is no record 'nobody'"),
        (2, "pair", "'c' has the same label"),
        (4, "pair", "'e' is in the split test"),
        (5, "pair", "'d' is in the split fit"),
        (0, "group", "'kites' is in the splits fit and test"),
        (9, "split", "the same request is in the split fit, too"),
        (10, "label", "the same request is harmless in another record"),
    }


def test_each_method_says_itself_what_it_lacks(tmp_path):
    from safetykit.adapters.registry import methods

    write_template(tmp_path / "mine")
    records = check_records(tmp_path / "mine").records
    labelled = {name for name, method in methods().items() if method.data == "records"}
    assert _lacks(records) == dict.fromkeys(labelled, "")
    lacks = _lacks([record for record in records if record.carrier != "text"])
    assert "no harmful text record" in lacks["vlm-guard"] and not lacks["sasa"]
    lacks = _lacks([record for record in records if record.split != "calibration"])
    assert "calibration split" in lacks["sasa"] and "calibration split" in lacks["vlm-guard"]


def test_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no records at"):
        check_records(tmp_path / "nothing")


def test_a_picture_in_two_splits_is_warned_of_once(tmp_path):
    shown = Image.linear_gradient("L").resize((4, 4)).convert("RGB")
    shown.save(tmp_path / "a.png")
    shown.save(tmp_path / "b.bmp")
    rows = [row("a", image="a.png"), row("b", image="b.bmp", split="test"), row("c", image="b.bmp", split="test")]
    found = check_records(write(tmp_path / "r.jsonl", *rows))
    assert [(one.row, one.field, one.reason) for one in found.warnings] == [
        (2, "image", "the same picture is in the split fit, too")
    ]


def test_pictures_of_one_colour_are_no_equal_pictures(tmp_path):
    """They stand beside requests that they say nothing of; the same request with one is still the same."""
    Image.new("RGB", (4, 4), "white").save(tmp_path / "white.png")
    rows = [row("a", image="white.png"), row("b", image="white.png", split="test")]
    assert not check_records(write(tmp_path / "r.jsonl", *rows)).warnings
    rows.append({**rows[0], "id": "c", "split": "test"})
    (one,) = check_records(write(tmp_path / "r.jsonl", *rows)).warnings
    assert (one.row, one.reason) == (3, "the same request is in the split fit, too")
