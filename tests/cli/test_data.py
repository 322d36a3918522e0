"""`safetykit data` from the first folder to a sheet: what it writes can be read, and what it refuses is told."""

import json
import re
from pathlib import Path

import pytest
from published import PUBLISHED

from safetykit.toolkit.data.importers import importers
from safetykit.toolkit.data.records import load_records


@pytest.fixture
def records(call, tmp_path):
    assert call("data", "init", tmp_path / "mine")[0] == 0
    return tmp_path / "mine"


def test_what_init_writes_passes_the_check(call, records):
    code, out, _ = call("data", "check", records, "--json")
    found = json.loads(out)
    assert code == 0 and not found["faults"] and not found["warnings"]
    assert set(found["methods"].values()) == {""} and "few records" in found["few"]
    code, out, err = call("data", "check", records)
    assert "could be fitted" in out and "No fault." in out and "data show" in err


def test_a_check_with_faults_ends_with_the_code_of_invalid_data(call, records):
    with open(records / "records.jsonl", "a") as file:
        file.write('{"id": "x", "promt": "[bold]a[/bold]"}\n')
    code, out, err = call("data", "check", records)
    assert code == 3 and "records.jsonl:25:promt: is no field of records. Did you mean 'prompt'?" in out.replace(
        "\n", ""
    )
    assert "next:" not in err
    code, out, _ = call("data", "check", records, "--json")
    assert code == 3 and len(json.loads(out)["faults"]) == 4


def test_a_split_carries_the_pictures_along(call, records, tmp_path):
    """Also those that are a rectangle of an atlas, or have a hash in their name."""
    lines = [json.loads(line) for line in (records / "records.jsonl").read_text().splitlines()]
    pictured = [line for line in lines if "image" in line]
    pictured[0]["image"] += "#xywh=0,0,48,96"
    (records / pictured[1]["image"]).rename(records / "pictures/a#b.png")
    pictured[1]["image"] = "pictures/a#b.png"
    (records / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    code, out, _ = call("data", "split", records, "-o", tmp_path / "out", "--shares", "50,25,25", "--json")
    assert code == 0 and sum(json.loads(out)["counts"].values()) == 24
    before, after = load_records(records), load_records(tmp_path / "out")
    assert [one.id for one in before] == [one.id for one in after]
    for old, new in zip(before, after, strict=True):
        assert (old.picture() is None) == (new.picture() is None)
        assert old.picture() is None or old.picture().tobytes() == new.picture().tobytes()
    assert {one.split for one in after} == {"fit", "calibration", "test"}


def test_pictures_of_one_colour_join_no_records(call, tmp_path):
    """Three colours stand beside all requests: joined by them, they would be three units at most."""
    lines = [{"id": f"r{at}", "prompt": f"what is {at}?", "label": "harmless", "split": "fit"} for at in range(12)]
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    drawing = ("data", "carriers", tmp_path / "texts.jsonl", "-o", tmp_path / "drawn", "--form", "blank")
    assert call(*drawing, "--drawn-only")[0] == 0
    code, out, _ = call("data", "split", tmp_path / "drawn", "-o", tmp_path / "out", "--shares", "50,25,25", "--json")
    counts = json.loads(out)["counts"]
    assert code == 0 and sorted(counts.values()) == [3, 3, 6]
    assert not json.loads(call("data", "check", tmp_path / "out", "--json")[1])["warnings"]


def test_a_record_without_a_prompt_is_named(call, records, tmp_path):
    lines = [json.loads(line) for line in (records / "records.jsonl").read_text().splitlines()]
    lines[0]["prompt"] = ""
    (records / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for command in ("split", "carriers"):
        code, _, err = call("data", command, records, "-o", tmp_path / "out")
        assert code == 2 and f"Record {lines[0]['id']}" in err and "the prompt" in err, err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shares", ["60,20", "a,b,c", "60,30,20", "-10,60,50"])
def test_shares_that_are_none_are_refused(call, records, tmp_path, shares):
    code, _, err = call("data", "split", records, "-o", tmp_path / "out", "--shares", shares)
    assert code == 2 and "add up to 100" in err


def test_a_sheet_loads_nothing_and_folds_what_is_harmful(call, records, tmp_path):
    with open(records / "records.jsonl", "a") as file:
        row = {"id": "<b>", "prompt": "<script>alert(1)</script>", "label": "harmful", "split": "test"}
        file.write(json.dumps({**row, "image": "gone.png"}) + "\n")
    sheet = tmp_path / "sheet.html"
    code, _, err = call("data", "show", records, "-o", sheet)
    assert code == 0, err
    text = sheet.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "There is no picture" in text
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text
    for card in text.split("<article")[1:]:
        if 'class="harmful"' in card:
            folded = card.partition("<details>")[2].partition("</details>")[0]
            assert "<p>" in folded and "<p>" not in card.replace(folded, "") and "<img" not in card.replace(folded, "")
        else:
            assert "<details>" not in card
    assert call("data", "show", records, "-o", sheet)[0] == 2
    assert call("data", "show", records, "-o", sheet, "--overwrite")[0] == 0
    sheet.write_text("<html>mine")
    code, _, err = call("data", "show", records, "-o", sheet, "--overwrite")
    assert code == 2 and "was not written by this command" in err and sheet.read_text() == "<html>mine"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["figstpe", "."], "no importer 'figstpe'"),
        (["figstep", "nowhere"], "no data set at nowhere"),
        (["figstep", ".", "--prompt", "a"], "--prompt does nothing with figstep"),
        (["xstest", ".", "--images", "."], "it takes no option of its own"),
        (["csv", ".", "--column", "prompt"], "names no column"),
        (["csv", ".", "--column", "promt=a"], "Did you mean 'prompt'"),
        (["csv", ".", "--label", "harmles"], "--label cannot be 'harmles'"),
        (["csv", ".", "--label", " "], "--label cannot be ' '"),
        (["csv", ".", "--prompt", ""], "--prompt is empty"),
        (["csv", ".", "--category", " "], "--category is empty"),
        (["csv", ".", "--column", "prompt=a", "--column", "prompt=b"], "two columns of one field"),
        (["csv", ".", "--column", "label=a", "--column", "harmful=b"], "two columns of one field"),
        (["csv", ".", "--column", "harmful=a", "--column", "harmless=a"], "two columns of one field"),
        (["csv", ".", "--split", "train"], "--split cannot be 'train'"),
        (["figstep", "."], "there is no such file"),
    ],
)
def test_an_import_that_cannot_be_is_refused_at_once(call, tmp_path, monkeypatch, typed, said):
    monkeypatch.chdir(tmp_path)
    code, _, err = call("data", "import", *typed, "-o", "out")
    assert code in (2, 3) and said in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "given", "why"),
    [
        ("--label", "harmful", "label does nothing with .*: every row says its own"),
        ("--prompt", "describe it", "prompt does nothing with .*: every row says its own"),
        ("--category", "mine", "category does nothing with .*: every row says its own"),
        ("--images", ".", "images does nothing with .*: no row names a picture"),
    ],
)
def test_what_every_row_says_itself_is_not_said_once_more(call, tmp_path, monkeypatch, option, given, why):
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("prompt,label,category\nwhat is a kite ?,harmless,toys\n")
    code, _, err = call("data", "import", "csv", "rows.csv", "-o", "out", option, given)
    assert code == 2 and re.search(why, " ".join(err.split())) and not Path("out").exists()
    assert call("data", "import", "csv", "rows.csv", "-o", "out")[0] == 0


def test_an_import_does_not_write_into_its_own_source(call, tmp_path):
    PUBLISHED["xstest"].make(tmp_path / "set")
    code, _, err = call("data", "import", "xstest", tmp_path / "set", "-o", tmp_path / "set", "--overwrite")
    assert code == 2 and "which is read to make it" in err and (tmp_path / "set/xstest_prompts.csv").is_file()


def test_an_import_does_not_read_what_it_wrote(call, tmp_path):
    PUBLISHED["images"].make(tmp_path / "set")
    typed = ("data", "import", "images", tmp_path / "set", "-o", tmp_path / "set/records", "--prompt", "What is this?")
    for again in ((), ("--overwrite",), ("--overwrite", "--limit", "9")):
        assert call(*typed, *again)[0] == 0
        assert len(load_records(tmp_path / "set/records")) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt;label\nwhat is a kite ?;safe\n", ""),
        ("prompt,is_harmful,safe\nwhat is a kite ?,no,yes\n", ""),
        ("prompt,is_harmful,safe\nwhat is a kite ?,no,rather\n", ""),
        ("prompt,is_harmful,safe\nwhat is a kite ?,yes,yes\n", "row 2, safe: says another label than is_harmful"),
    ],
)
def test_a_table_is_read_as_people_write_them(call, tmp_path, text, said):
    (tmp_path / "rows.csv").write_text(text)
    typed = ("data", "import", "csv", tmp_path / "rows.csv", "-o", tmp_path / "out")
    code, _, err = call(*typed)
    assert code == (3 if said else 0) and said in " ".join(err.split())
    if said:
        assert call(*typed, "--column", "label=safe")[0] == 0
    assert [one.label for one in load_records(tmp_path / "out")] == ["harmless"]


def test_rows_of_json_lines_say_what_is_wrong_with_them(call, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "label":\n{"messages": "a", "label": "safe"}\n')
    code, _, err = call("data", "import", "json", tmp_path / "rows.jsonl", "-o", tmp_path / "out")
    said = " ".join(err.split())
    assert code == 3 and "line 1: is not JSON (Expecting value, character 26)" in said
    assert "line 2, messages: is a text, and no list of messages" in said


def test_a_split_keeps_its_source_and_tells_a_label_that_a_split_lacks(call, tmp_path):
    PUBLISHED["xstest"].make(tmp_path / "set")
    assert call("data", "import", "xstest", tmp_path / "set", "-o", tmp_path / "mine")[0] == 0
    code, _, err = call("data", "split", tmp_path / "mine", "-o", tmp_path / "out", "--shares", "50,0,50")
    assert code == 0 and "fit has no harm" in err and "calibration has no" not in err
    assert (tmp_path / "out/source.json").read_bytes() == (tmp_path / "mine/source.json").read_bytes()


def test_the_kinds_are_named_by_the_help_and_the_page(call):
    code, out, _ = call("data", "import", "--help")
    page = (Path(__file__).parents[2] / "docs/howto/data.md").read_text()
    told, listed = "".join(out.split()), page.partition("<!-- importers")[0].rpartition("KIND is")[2]
    assert code == 0
    for kind in importers():
        assert f"{kind}," in told.partition("KIND:")[2] and f"`{kind}`" in listed
