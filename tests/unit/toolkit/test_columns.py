"""Records in Parquet and in folders of `datasets`: the same records, pictures included, and every fault named."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from safetykit.adapters import InvalidArtifact, UsageError
from safetykit.toolkit.data import spool
from safetykit.toolkit.data.ahead import PicturesAhead
from safetykit.toolkit.data.records import load_records, require_pictures


def png(shade):
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(held := io.BytesIO(), "PNG")
    return held.getvalue()


def row(index, **changed):
    """A record; every third has no picture."""
    return {
        "id": f"r{index}",
        "prompt": "what is this ?"[: 4 + index % 9],
        "image": None if index % 3 == 0 else {"bytes": png(index), "path": None},
        "label": ("harmless", "harmful")[index % 2],
        "split": ("fit", "calibration", "test")[index % 3],
        "tags": ["look-alike"] if index % 5 == 0 else None,
        **changed,
    }


ROWS = [row(index) for index in range(40)]


def in_parquet(path, rows=ROWS, size=7):
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=size)
    return path


def in_arrow(path, rows=ROWS, size=6, names=None, metadata=None):
    """As `datasets` writes: a stream of batches."""
    table = pa.Table.from_pylist(rows)
    table = table.replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=size)
    return path


def in_lines(folder, rows=ROWS):
    folder.mkdir(exist_ok=True)
    lines = []
    for one in rows:
        image = one["image"] and f"{one['id']}.png"
        if image:
            (folder / image).write_bytes(one["image"]["bytes"])
        kept = {name: value for name, value in {**one, "image": image}.items() if value is not None}
        lines.append(json.dumps(kept))
    (folder / "records.jsonl").write_text("\n".join(lines))
    return folder


def saved(folder, rows=ROWS):
    """A folder as `Dataset.save_to_disk` leaves it, in two files."""
    folder.mkdir(parents=True)
    names = [f"data-0000{at}-of-00002.arrow" for at in range(2)]
    for name, part in zip(names, (rows[:25], rows[25:]), strict=True):
        in_arrow(folder / name, part)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def digests(records):
    return [(record.id, record.tags, record.digest()) for record in records]


def test_every_form_holds_the_same_records(tmp_path):
    lines = load_records(in_lines(tmp_path / "lines"))
    parts = tmp_path / "parts"
    parts.mkdir()
    in_parquet(parts / "a.parquet", ROWS[:13])
    in_arrow(parts / "b.arrow", ROWS[13:20])
    in_parquet(parts / "c.parquet", ROWS[20:])
    plain = [{**one, "image": one["image"] and one["image"]["bytes"]} for one in ROWS]
    for path in (
        in_parquet(tmp_path / "one.parquet"),
        in_parquet(tmp_path / "plain.parquet", plain),
        parts,
        saved(tmp_path / "saved"),
    ):
        assert digests(load_records(path)) == digests(lines), path
    calibration = load_records(tmp_path / "one.parquet", ["calibration"])
    assert [record.id for record in calibration] == [one["id"] for one in ROWS if one["split"] == "calibration"]


def test_paths_in_columns_are_relative_to_their_file(tmp_path):
    in_lines(tmp_path)
    rows = [{**one, "image": one["image"] and {"bytes": None, "path": f"{one['id']}.png"}} for one in ROWS]
    texts = [{**one, "image": one["image"] and one["image"]["path"]} for one in rows]
    expected = digests(load_records(tmp_path / "records.jsonl"))
    for name, some in (("structs", rows), ("texts", texts)):
        assert digests(load_records(in_parquet(tmp_path / f"{name}.parquet", some))) == expected
        assert digests(load_records(in_arrow(tmp_path / f"{name}.arrow", some))) == expected


def test_data_sets_by_split_need_no_column_for_it_and_classes_have_names(tmp_path):
    for split in ("fit", "test"):
        rows = [{"id": f"{split}{at}", "prompt": "who ?", "label": at % 2} for at in range(4)]
        names = {"info": {"features": {"label": {"names": ["harmless", "harmful"], "_type": "ClassLabel"}}}}
        (tmp_path / split).mkdir()
        in_arrow(tmp_path / split / "data.arrow", rows, metadata={"huggingface": json.dumps(names)})
        (tmp_path / split / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": ["fit", "test"]}))
    records = load_records(tmp_path)
    assert [record.split for record in records] == ["fit"] * 4 + ["test"] * 4
    assert [record.label for record in records[:2]] == ["harmless", "harmful"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": "bad"}, r"row 3 is not a record: label"),
        ({"prompt": None}, r"row 3 is not a record: prompt"),
        ({"id": "r1"}, r"row 3 repeats the id 'r1'"),
    ],
)
def test_a_bad_row_is_named(tmp_path, changed, message):
    rows = [row(0), row(1), row(2, **changed), row(3)]
    for path in (in_parquet(tmp_path / "a.parquet", rows), in_arrow(tmp_path / "a.arrow", rows)):
        with pytest.raises(InvalidArtifact, match=f"{path.name}, {message}"):
            load_records(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": "1", "question": "?", "label": "harmful", "split": "fit"}], "columns id, question, .* lacks prompt"),
        ([row(0, colour="red")], "has colour"),
        ([row(0, image=3)], "column image is int64"),
    ],
)
def test_columns_that_are_not_those_of_records_are_named(tmp_path, rows, message):
    for path in (in_parquet(tmp_path / "a.parquet", rows), in_arrow(tmp_path / "a.arrow", rows)):
        with pytest.raises(UsageError, match=message):
            load_records(path)


def test_files_of_another_kind_are_named(tmp_path):
    for name in ("a.parquet", "b.arrow"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(InvalidArtifact, match=f"{name} cannot be read as"):
            load_records(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no records at .*\.parquet"):
        load_records(tmp_path / "empty")


@pytest.mark.parametrize("name", ["../lines.arrow", "/etc/passwd", "gone.arrow", 3])
def test_a_saved_data_set_reads_no_file_outside_its_folder(tmp_path, name):
    in_arrow(tmp_path / "lines.arrow")
    folder = saved(tmp_path / "saved")
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(InvalidArtifact, match="which is not in it"):
        load_records(folder)
    (folder / "state.json").write_text("{}")
    with pytest.raises(InvalidArtifact, match="names no data_files"):
        load_records(folder)


def test_bad_rows_are_left_out_and_counted(tmp_path):
    good = load_records(in_parquet(tmp_path / "good.parquet"))
    rows = [row(100, label="bad"), *ROWS[:20], row(101, image={"bytes": b"none", "path": None}), *ROWS[20:]]
    for path in (in_parquet(tmp_path / "a.parquet", rows), in_arrow(tmp_path / "a.arrow", rows)):
        found = load_records(path, skip_bad_rows=True)
        assert digests(found) == digests(good)
        assert found.skipped == 2 and f"{path.name}, row 22" in found.told() and f"{path.name}, row 1 " in found.told()
        (bad,) = (
            record for record in load_records(in_parquet(tmp_path / "b.parquet", rows[1:])) if record.id == "r101"
        )
        with pytest.raises(UsageError, match=r"Record r101 \(.*b.parquet, row 21\): A file of 4 bytes cannot be read"):
            bad.picture()


def test_a_bad_line_and_a_missing_picture_are_left_out_too(tmp_path):
    good = load_records(in_lines(tmp_path))
    (tmp_path / "more.jsonl").write_text(
        "{\n" + json.dumps({"id": "x", "prompt": "?", "label": "harmful", "split": "fit", "image": "gone.png"})
    )
    with pytest.raises(InvalidArtifact, match="more.jsonl:1 is not a record"):
        load_records(tmp_path)
    found = load_records(tmp_path, skip_bad_rows=True)
    assert digests(found) == digests(good) and found.skipped == 2
    (tmp_path / "more.jsonl").write_text((tmp_path / "more.jsonl").read_text().partition("\n")[2])
    with pytest.raises(UsageError, match=r"Record x \(.*more.jsonl:1\): There is no picture"):
        require_pictures(load_records(tmp_path))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_workers_change_no_picture(tmp_path, workers):
    path = in_parquet(tmp_path / "a.parquet")
    expected = [record.picture() for record in load_records(path, workers=0)]
    records = load_records(path, workers=workers)
    ahead = PicturesAhead(records)
    found = [ahead.of(record) for record in records]
    assert found == [() if image is None else (image,) for image in expected]
    assert ahead.of(records[1]) == (expected[1],)  # asked for again
    with pytest.raises(UsageError, match="workers cannot be 'many'"):
        load_records(path, workers="many")


def test_pictures_that_left_the_disk_are_read_again(tmp_path, monkeypatch):
    path = in_parquet(tmp_path / "a.parquet")
    expected = digests(load_records(path))
    monkeypatch.setattr(spool, "_SEGMENT", 100)
    monkeypatch.setattr(spool, "_SEGMENTS", 2)
    records = load_records(path, workers=0)
    assert digests(records) == digests(records) == expected


def test_a_record_that_lies_on_disk_is_used_like_another(tmp_path):
    records = load_records(in_parquet(tmp_path / "a.parquet"))
    again = load_records(in_parquet(tmp_path / "a.parquet"))
    assert records[5].model_copy(update={"prompt": "who ?"}).prompt == "who ?"
    assert records[5] in records and records[5] != records[6] and len({*records}) == len(records)
    assert [record.id for record in records] == [record.id for record in again]
    assert repr(records[0]) == "Record('r0', harmless, text, fit, 'what')"
