"""How files of a data set may be written, and what of them is refused: with file, row and field."""

from __future__ import annotations

import csv
import json
import shutil
import struct
import zlib

import pytest
from importing import read
from published import PUBLISHED, draw, write_json, write_lines, write_table

from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.toolkit.data.importers import arrow, source
from safetykit.toolkit.data.records import load_records


def bomb(path, side=9_000):
    """A PNG whose head says it has 81 million pixels."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path.read_bytes()


def test_byte_order_marks_line_ends_and_line_breaks_in_cells_are_read(folder, tmp_path):
    text = '\ufeffprompt,label\r\n"a request,\r\nof two lines",safe\r\nanother,unsafe\r\n'
    (folder / "mine.csv").write_bytes(text.encode())
    read("csv", folder, tmp_path / "out")
    assert [one.prompt for one in load_records(tmp_path / "out")] == ["a request,\r\nof two lines", "another"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,label\na request\n", "row 2: has fewer cells than the 2 columns"),
        ("prompt,label\na request,safe,more\n", "row 2: has more cells than the 2 columns"),
        ('prompt,label\n"a request,safe\n', "after row 1: cannot be read as a table"),
        ("prompt,prompt\na,b\n", "two columns have one name"),
        ("", "no column is called|holds no record"),
        (
            "asked,label\na,safe\n",
            "mine.csv, prompt: no column is called prompt or question .* but asked, label.*--column",
        ),
        ("prompt,kind\na,safe\n", "mine.csv, label: no column is called label .*--label"),
    ],
)
def test_a_table_that_is_none_is_refused(text, said, folder, tmp_path):
    (folder / "mine.csv").write_text(text)
    with pytest.raises((InvalidArtifact, UsageError), match=said):
        read("csv", folder, tmp_path / "out")


def test_a_line_without_an_end_is_not_held(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(source, "LONGEST", 1000)
    monkeypatch.setattr(csv, "field_size_limit", lambda *given: 1000)
    (folder / "mine.csv").write_text("prompt,label\n" + "a" * 5000)
    with pytest.raises(InvalidArtifact, match="a line is longer than 1,000 characters"):
        read("csv", folder, tmp_path / "out")


def test_bombs_are_refused(folder, tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    held = bomb(folder / "bomb.png")
    rows = [{"prompt": "a request", "label": "safe", "image": {"bytes": held, "path": None}}]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "mine.parquet")
    with pytest.raises(InvalidArtifact, match="row 1, image: .*9000x9000 pixels, and at most"):
        read("parquet", folder, tmp_path / "out")
    write_table(folder / "mine.csv", [{"prompt": "a request", "label": "safe", "image": "bomb.png"}])
    with pytest.raises(InvalidArtifact, match="row 2, image: .*9000x9000 pixels, and at most"):
        read("csv", folder, tmp_path / "out")
    monkeypatch.setattr(arrow, "MOST_GROUP", 10)
    with pytest.raises(InvalidArtifact, match="mine.parquet: rows unpack to over 0 GiB a group"):
        read("parquet", folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("question", "\ud800", "question: is not valid Unicode"),
        ("question", 5, "question: is 5, not a text"),
        ("question", ["a"], r"question: is \['a'\], not a text"),
        ("imagename", "a\0.png", "imagename: the picture .* leads out of the folder"),
        ("imagename", "..", "imagename: the picture .* leads out of the folder"),
        ("imagename", ".", "imagename: the picture .*"),
        ("capability", ["\ud800"], "item v1_1: The record is not valid Unicode"),
        ("capability", [], "capability: is no list of texts"),
        ("capability", {"a": 1}, "capability: is no list of texts"),
    ],
)
def test_values_of_other_kinds_are_told(field, value, said, folder, tmp_path):
    PUBLISHED["mm-vet"].make(folder)
    found = json.loads((folder / "mm-vet.json").read_text())
    found["v1_1"][field] = value
    (folder / "mm-vet.json").write_text(json.dumps(found))
    with pytest.raises(InvalidArtifact, match=said):
        read("mm-vet", folder, tmp_path / "out")
    made = read("mm-vet", folder, tmp_path / "out", skip_bad_rows=True)
    assert made.counts.total() == 1 and made.left_out == 1


def test_nested_json_is_refused(folder, tmp_path):
    (folder / "mine.json").write_text("[" * 200_000)
    with pytest.raises(InvalidArtifact, match="mine.json: is not JSON"):
        read("llava", folder, tmp_path / "out")


def test_a_link_of_the_hub_s_cache_is_followed(tmp_path):
    """There a snapshot's files are links into blobs; no other link is followed."""
    snapshot = tmp_path / "datasets--org--name/snapshots/abc"
    PUBLISHED["xstest"].make(snapshot)
    (blobs := tmp_path / "datasets--org--name/blobs").mkdir()
    (snapshot / "xstest_prompts.csv").rename(blobs / "123")
    (snapshot / "xstest_prompts.csv").symlink_to("../../blobs/123")
    assert read("xstest", snapshot, tmp_path / "out").counts.total() == 2


def test_no_record_that_cannot_be_read_again_is_written(folder, tmp_path, monkeypatch):
    from safetykit.toolkit.data import writing

    monkeypatch.setattr(writing, "LONGEST", 200)
    rows = [{"prompt": "\x1b" * 40, "label": "safe"}, {"prompt": "a request", "label": "safe"}]
    write_lines(folder / "mine.jsonl", rows)
    with pytest.raises(InvalidArtifact, match="line 1: The record is a line of more than 200 bytes"):
        read("json", folder, tmp_path / "out")
    assert read("json", folder, tmp_path / "out", skip_bad_rows=True).counts.total() == 1


@pytest.mark.parametrize("field", ["image", "label", "carrier"])
def test_values_in_errors_are_short_and_plain(field, folder, tmp_path):
    row = {"prompt": "a request", "label": "safe", field: "\x1b[31m" + "a" * 800_000}
    write_lines(folder / "mine.jsonl", [row])
    with pytest.raises(InvalidArtifact) as refused:
        read("json", folder, tmp_path / "out")
    assert len(str(refused.value)) < 1500 and "\x1b" not in str(refused.value) + refused.value.next_step


@pytest.mark.parametrize("rows", [[], [{"prompt": "a request", "label": "perhaps"}] * 7])
def test_nothing_that_could_be_read_is_refused_with_its_reasons(rows, folder, tmp_path):
    write_lines(folder / "mine.jsonl", rows)
    with pytest.raises(InvalidArtifact, match="holds no record") as refused:
        read("json", folder, tmp_path / "out", skip_bad_rows=True)
    assert not rows or ("7 bad rows were left out" in str(refused.value) and "(and 2 more)" in str(refused.value))
    if rows:
        with pytest.raises(InvalidArtifact) as refused:
            read("json", folder, tmp_path / "out", told=100)
        assert str(refused.value).count("cannot be 'perhaps'") == 7


def test_a_carrier_without_its_picture_is_refused(folder, tmp_path):
    write_lines(folder / "mine.jsonl", [{"prompt": "a request", "label": "safe", "carrier": "typographic"}])
    with pytest.raises(InvalidArtifact, match="line 1, image: there is no picture, but the carrier is typographic"):
        read("json", folder, tmp_path / "out")


def test_two_columns_of_one_name_are_refused_in_parquet(folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    texts = pa.array(["a request"])
    parquet.write_table(pa.Table.from_arrays([texts] * 3, ["prompt", "label", "prompt"]), folder / "mine.parquet")
    with pytest.raises(InvalidArtifact, match="two columns have one name: prompt, label, prompt"):
        read("parquet", folder, tmp_path / "out")


def test_links_within_the_folder_are_followed(folder, tmp_path):
    draw(folder / "pictures/a.png", 1)
    (folder / "link.png").symlink_to("pictures/a.png")
    (folder / "more").symlink_to("pictures")
    rows = [{"prompt": "a request", "label": "safe", "image": name} for name in ("link.png", "more/a.png")]
    write_table(folder / "rows.table", rows)
    (folder / "mine.csv").symlink_to("rows.table")
    assert read("csv", folder, tmp_path / "out").pictures == 1


def test_data_sets_that_were_saved_together_have_files_of_one_name(folder, tmp_path):
    PUBLISHED["datasets"].make(folder)
    shutil.copytree(folder / "test", folder / "train")
    write_json(folder / "dataset_dict.json", {"splits": ["train", "test"]})
    assert read("datasets", folder, tmp_path / "out").counts.total() == 6
    ids = [record.id for record in load_records(tmp_path / "out")]
    assert ids[::3] == ["datasets/train/data-00000-of-00001/1", "datasets/test/data-00000-of-00001/1"]


def test_what_is_unsafe_about_a_picture_is_told_to_judges_alone(folder, tmp_path):
    PUBLISHED["siuo"].make(folder)
    read("siuo", folder, tmp_path / "out")
    first = load_records(tmp_path / "out")[0]
    assert (first.prompt, first.intent) == ("a request 0", "a request 0 [a warning]")
