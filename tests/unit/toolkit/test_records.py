"""Records say what is wrong, where."""

import json

import pytest
from PIL import Image

from safetykit.adapters import InvalidArtifact, UsageError
from safetykit.toolkit.data import shards
from safetykit.toolkit.data.records import load_records, require_pictures, subset

BASE = {"id": "a", "prompt": "what is this?", "label": "harmless", "split": "fit"}


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_a_rectangle_is_cut_out_of_an_atlas(tmp_path):
    atlas = Image.new("RGB", (8, 4))
    atlas.putpixel((5, 2), (255, 0, 0))
    atlas.save(tmp_path / "atlas.png")
    (record,) = load_records(write(tmp_path / "r.jsonl", {**BASE, "image": "atlas.png#xywh=4,0,4,4"}))
    picture = record.picture()
    assert picture.size == (4, 4)
    assert picture.getpixel((1, 2)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("gone.png", r"Record a \(.*r.jsonl:1\): There is no picture .*gone.png.*relative to the file"),
        ("atlas.png#xywh=6,0,4,4", "leaves the picture of 8x4"),
        ("atlas.png#t=3", "There is no picture .*#t=3"),
        ("text.png", "text.png cannot be read as a picture"),
    ],
)
def test_a_bad_picture_is_named(tmp_path, image, message):
    Image.new("RGB", (8, 4)).save(tmp_path / "atlas.png")
    (tmp_path / "text.png").write_text("no picture")
    (record,) = load_records(write(tmp_path / "r.jsonl", {**BASE, "image": image}))
    with pytest.raises(UsageError, match=message):
        record.picture()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "r.jsonl:2 is not a record"),
        ({**BASE, "id": "b", "label": "bad"}, "r.jsonl:2 is not a record: label"),
        ({**BASE, "id": "b", "extra": 1}, "r.jsonl:2 is not a record: extra"),
        ({"id": "b"}, "r.jsonl:2 is not a record: prompt"),
        (BASE, "r.jsonl:2 repeats the id 'a'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    with pytest.raises(InvalidArtifact, match=message):
        load_records(write(tmp_path / "r.jsonl", BASE, row))


def test_a_line_that_is_too_long_is_not_held(tmp_path, monkeypatch):
    """The next line is the next line, whether a long one ends where the limit does or beyond it."""
    monkeypatch.setattr(shards, "LONGEST", 200)
    good = {**BASE, "prompt": "short"}
    for extra in (1, 60, 150, 400):
        long = {
            **BASE,
            "id": "long",
            "prompt": "x" * (200 - len(json.dumps({**BASE, "id": "long", "prompt": ""})) + extra),
        }
        path = write(tmp_path / "r.jsonl", good, long, {**good, "id": "b"})
        with pytest.raises(InvalidArtifact, match=r"r.jsonl:2 is not a record: it is longer than 200 bytes"):
            load_records(path)
        kept = load_records(path, skip_bad_rows=True)
        assert [record.id for record in kept] == ["a", "b"]


def test_an_empty_split_is_named(tmp_path):
    path = write(tmp_path / "r.jsonl", BASE)
    with pytest.raises(UsageError, match="holds no record of split calibration, test"):
        load_records(path, ["calibration", "test", "fit"])
    with pytest.raises(UsageError, match="There are no records at"):
        load_records(tmp_path / "nothing.jsonl")


def test_a_folder_is_read_file_by_file(tmp_path):
    write(tmp_path / "b.jsonl", {**BASE, "id": "b"})
    write(tmp_path / "a.jsonl", BASE)
    assert [record.id for record in load_records(tmp_path)] == ["a", "b"]


def test_the_digest_covers_words_labels_and_pixels(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "p.png")
    Image.new("RGB", (2, 2), "white").save(tmp_path / "q.png")
    rows = [
        {**BASE, "id": "1", "image": "p.png"},
        {**BASE, "id": "2", "image": "q.png"},
        {**BASE, "id": "3", "image": "p.png", "label": "harmful"},
        {**BASE, "id": "4", "image": "p.png", "prompt": "who?"},
        {**BASE, "id": "5", "image": "p.png"},
    ]
    digests = [record.digest() for record in load_records(write(tmp_path / "r.jsonl", *rows))]
    assert len(set(digests)) == 4
    assert digests[0] == digests[4]


def test_a_subset_keeps_every_group_and_the_order(tmp_path):
    rows = [
        {**BASE, "id": f"{label}{index}", "label": label, "split": "test"}
        for index in range(20)
        for label in ("harmful", "harmless")
    ]
    records = load_records(write(tmp_path / "r.jsonl", *rows))
    chosen = subset(records, 6)
    assert [record.label for record in chosen].count("harmful") == 3
    assert chosen == [record for record in records if record in chosen]
    assert subset(records, 100) == records


def test_a_carrier_that_is_left_out_is_that_of_a_picture_where_there_is_one(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = [
        {**BASE, "id": "words"},
        {**BASE, "id": "null", "image": None},
        {**BASE, "id": "picture", "image": "a.png"},
        {**BASE, "id": "beside", "image": "a.png", "carrier": "text"},
    ]
    found = load_records(write(tmp_path / "r.jsonl", *rows))
    assert [(record.id, record.carrier) for record in found] == [
        ("words", "text"),
        ("null", "text"),
        ("picture", "image"),
        ("beside", "text"),
    ]
    assert [record.model_dump()["carrier"] for record in found] == ["text", "text", "image", "text"]  # as read again


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    lines = "\r\n".join(json.dumps({**BASE, "id": name}) for name in "ab")
    (tmp_path / "r.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode() + b"\r\n")
    assert [record.id for record in load_records(tmp_path / "r.jsonl")] == ["a", "b"]


def test_a_hash_in_a_picture_s_name_belongs_to_it(tmp_path):
    Image.new("RGB", (8, 4)).save(tmp_path / "a#1.png")
    rows = [{**BASE, "image": "a#1.png"}, {**BASE, "id": "b", "image": "a#1.png#xywh=0,0,2,3"}]
    found = load_records(write(tmp_path / "r.jsonl", *rows))
    require_pictures(found)
    assert [record.picture().size for record in found] == [(8, 4), (2, 3)]
