"""What an import leaves: all of it or nothing, each picture once, bad rows counted, bombs refused."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from importing import read
from published import PUBLISHED, draw, write_lines, write_table

from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.toolkit.data.importers import get_importer, recognised
from safetykit.toolkit.data.records import load_records


def test_a_limit_takes_evenly(folder, tmp_path):
    rows = [
        {"prompt": f"a request {at}", "label": "safe" if at < 90 else "unsafe", "category": "ab"[at % 2]}
        for at in range(100)
    ]
    write_table(folder / "mine.csv", rows)
    read("csv", folder, tmp_path / "out", limit=9)
    found = load_records(tmp_path / "out")
    assert len(found) == 9
    assert Counter((one.label, one.category) for one in found) == {
        ("harmless", "a"): 3,
        ("harmless", "b"): 2,
        ("harmful", "a"): 2,
        ("harmful", "b"): 2,
    }


def test_a_limit_beyond_the_records_takes_all(folder, tmp_path):
    PUBLISHED["xstest"].make(folder)
    assert read("xstest", folder, tmp_path / "out", limit=50).counts.total() == 2


def test_bad_rows_are_left_out_and_counted(folder, tmp_path):
    rows = [{"prompt": f"a request {at}", "label": "safe", "image": f"{at}.png"} for at in range(9)]
    rows[3]["label"] = "perhaps"
    rows[5]["image"] = "../5.png"
    write_table(folder / "mine.csv", rows)
    for at in (0, 1, 2, 3, 4, 6, 7):
        draw(folder / f"{at}.png", at)
    (folder / "8.png").write_text("words")
    with pytest.raises(InvalidArtifact) as refused:
        read("csv", folder, tmp_path / "out")
    told = refused.value.message
    assert told.startswith("3 rows are not as CSV or TSV has them.")
    assert "mine.csv, row 5, label: cannot be 'perhaps'" in told
    assert "mine.csv, row 7, image: the picture" in told and "leads out of the folder" in told
    assert "mine.csv, row 10, image: A file of 5 bytes cannot be read as a picture" in told
    assert not (tmp_path / "out").exists()
    made = read("csv", folder, tmp_path / "out", skip_bad_rows=True)
    assert made.left_out == 3 and made.counts == {"test/image/harmless": 6}
    assert json.loads((tmp_path / "out/source.json").read_text())["left_out"] == 3


def test_a_picture_that_many_rows_name_is_kept_once(folder, tmp_path):
    PUBLISHED["pope"].make(folder)
    assert read("pope", folder, tmp_path / "out").pictures == 1
    assert len(list((tmp_path / "out/pictures").iterdir())) == 1


def test_an_id_that_comes_twice_is_told(folder, tmp_path):
    write_lines(folder / "mine.jsonl", [{"id": "a", "prompt": "a request", "label": "safe"}] * 2)
    with pytest.raises(InvalidArtifact, match=r"mine.jsonl, line 2: a record before it has the same id, 'a'"):
        read("json", folder, tmp_path / "out")


def test_turned_pictures_and_those_called_otherwise_keep_their_bytes(folder, tmp_path):
    """A picture with EXIF orientation is upright when it is read; its file's name need not say its format."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(folder / "a.png.jpg", "JPEG", exif=exif)
    (folder / "a.png.jpg").rename(folder / "a#1.png")
    write_table(folder / "mine.csv", [{"prompt": "a request", "label": "safe", "image": "a#1.png"}])
    read("csv", folder, tmp_path / "out")
    (record,) = load_records(tmp_path / "out")
    assert record.image.endswith(".jpeg") and record.picture().size == (4, 8)
    assert (tmp_path / "out" / record.image).read_bytes() == (folder / "a#1.png").read_bytes()


@pytest.mark.parametrize("fault", [None, "column", "picture", "bytes"])
def test_mm_safetybench_of_the_hub_gives_the_same_records(fault, folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    PUBLISHED["mm-safetybench"].make(folder)
    (hub := tmp_path / "hub").mkdir()
    for scenario in ("01-Illegal_Activitiy", "02-HateSpeech"):
        asked = json.loads((folder / f"data/processed_questions/{scenario}.json").read_text())
        (place := hub / "data" / scenario[3:]).mkdir(parents=True)
        for kind in ("Text_only", "SD", "SD_TYPO", "TYPO"):
            field = {"Text_only": "Question", "SD": "Rephrased Question(SD)"}.get(kind, "Rephrased Question")
            rows = []
            for key, one in asked.items():
                drawn = folder / f"data/imgs/{scenario}/{kind}/{key}.jpg"
                image = None if kind == "Text_only" else {"bytes": drawn.read_bytes(), "path": drawn.name}
                rows.append({"id": key, "question": one[field], "image": image})
            if kind == "SD" and fault == "column":
                rows = [{"id": one["id"], "query": one["question"], "image": one["image"]} for one in rows]
            if kind == "SD" and fault in ("picture", "bytes"):
                rows[1]["image"] = {"bytes": b"words"} if fault == "picture" else {"bytes": None, "path": "a.jpg"}
            parquet.write_table(pa.Table.from_pylist(rows), place / f"{kind}-00000-of-00001.parquet")
    assert recognised(hub).name == "mm-safetybench"
    if fault:
        said = {
            "column": "SD-.*, question: there is no such column",
            "picture": "SD-.*, row 2, image: A file of 5 bytes",
        }
        with pytest.raises(InvalidArtifact, match=said.get(fault, "SD-.*, row 2, image: holds no bytes")):
            read("mm-safetybench", hub, tmp_path / "b")
        return
    read("mm-safetybench", folder, tmp_path / "a")
    read("mm-safetybench", hub, tmp_path / "b")
    first, second = (sorted((tmp_path / one / "records.jsonl").read_text().splitlines()) for one in "ab")
    assert first == second and len(first) == 16


def test_records_are_replaced_and_files_of_others_are_not(folder, tmp_path):
    PUBLISHED["xstest"].make(folder)
    read("xstest", folder, tmp_path / "out")
    with pytest.raises(UsageError, match="already exists"):
        read("xstest", folder, tmp_path / "out")
    read("xstest", folder, tmp_path / "out", overwrite=True)
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"did not write: notes.txt"):
        read("xstest", folder, tmp_path / "out", overwrite=True)


def test_a_misspelt_kind_and_an_unknown_folder_are_told(folder):
    with pytest.raises(UsageError, match="no importer 'figstpe'. Did you mean 'figstep'"):
        get_importer("figstpe")
    with pytest.raises(UsageError, match="not known what .* holds"):
        recognised(folder)


@pytest.mark.parametrize(
    ("column", "columns", "values", "said"),
    [
        ("label", {}, ("Harmful", "unsafe", "malicious", "harmless", "safe", "benign"), "+++---"),
        *((name, {}, (True, "1", "1.0", "no", "0.0"), "+++--") for name in ("harmful", "is_harmful", "unsafe")),
        *((name, {}, (True, "1", "1.0", "no", "0.0"), "---++") for name in ("safe", "is_safe", "benign", "harmless")),
        ("safe", {"label": "safe"}, ("true", "false"), "-+"),
        ("label", {"harmful": "label"}, (1, 0, 1.0, 0.0), "+-+-"),
        ("toxic", {"harmful": "toxic"}, ("yes", "no"), "+-"),
        ("ok", {"harmless": "ok"}, ("yes", "no"), "-+"),
        *(("label", {}, (value,), f"label: cannot be .*{value}.*--column harmful=label") for value in ("true", 1, 0.0)),
        ("answer", {"label": "answer"}, ("yes",), "answer: cannot be 'yes'.*--column harmful=answer"),
        ("harmful", {}, ("perhaps",), "harmful: cannot be 'perhaps'"),
    ],
)
def test_a_label_is_what_the_file_says_and_never_guessed(column, columns, values, said, folder, tmp_path):
    write_lines(folder / "mine.jsonl", [{"prompt": f"a request {at}", column: one} for at, one in enumerate(values)])
    if set(said) - {"+", "-"}:
        with pytest.raises(InvalidArtifact) as refused:
            read("json", folder, tmp_path / "out", {"columns": columns})
        assert re.search(said, str(refused.value) + refused.value.next_step)
        return
    read("json", folder, tmp_path / "out", {"columns": columns})
    found = ["+" if one.label == "harmful" else "-" for one in load_records(tmp_path / "out")]
    assert "".join(found) == said


def test_ids_of_several_files_say_which(folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as parquet

    rows = [{"prompt": "a request", "label": "safe"}]
    for name in ("a", "b"):
        write_table(folder / f"{name}.csv", rows)
        write_lines(folder / f"{name}.jsonl", rows)
        (folder / name).mkdir()
        parquet.write_table(pa.Table.from_pylist(rows), folder / name / "part.parquet")
    for kind, ids in (("csv", "a/2 b/2"), ("json", "a/1 b/1"), ("parquet", "a/part/1 b/part/1")):
        read(kind, folder, tmp_path / kind)
        assert [one.id for one in load_records(tmp_path / kind)] == [f"{kind}/{one}" for one in ids.split()]


def test_the_second_version_of_xstest_is_read(folder, tmp_path):
    row = {"id_v1": "", "id_v2": "7", "type": "contrast_homonyms", "prompt": "a request", "focus": "", "note": ""}
    write_table(folder / "xstest_v2_prompts.csv", [row])
    read("xstest", folder, tmp_path / "out")
    assert [(one.id, one.label) for one in load_records(tmp_path / "out")] == [("xstest/7", "harmful")]


def test_good_rows_fill_the_limit_where_bad_ones_are_skipped(folder, tmp_path):
    rows = [{"id": f"{at}", "prompt": "a request", "label": "safe", "image": f"{at}.png"} for at in range(8)]
    rows += [{"id": "0", "prompt": "a request", "label": "unsafe", "image": ""}] * 3
    write_table(folder / "mine.csv", rows)
    for at in range(8):
        draw(folder / f"{at}.png", at) if at % 2 else (folder / f"{at}.png").write_text("words")
    made = read("csv", folder, tmp_path / "out", limit=4, skip_bad_rows=True)
    assert made.counts == {"test/image/harmless": 3, "test/text/harmful": 1} and made.left_out
    made = read("csv", folder, tmp_path / "all", limit=9, skip_bad_rows=True)
    assert made.counts == {"test/image/harmless": 4, "test/text/harmful": 1} and made.left_out == 6


def test_what_is_not_used_is_told(folder, tmp_path):
    row = {"prompt": "a request", "label": "safe", "split": "fit", "pair": "b", "tags": "c", "images": "a.png"}
    write_table(folder / "mine.csv", [row])
    for name in ("deep/more.csv", "more.tsv", "more.JSONL", "a.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    made = read("csv", folder, tmp_path / "out")
    assert made.unused["columns"] == ["split", "pair", "tags", "images"]
    assert made.unused["files"] == ["deep/more.csv", "more.JSONL", "more.tsv"]
    assert not any(read("csv", folder / "mine.csv", tmp_path / "one").unused["files"])


def test_the_smaller_figstep_is_read_where_its_file_is_named(folder, tmp_path, monkeypatch):
    PUBLISHED["figstep"].make(folder)
    tiny = (folder / "data/question/safebench.csv").rename(folder / "data/question/SafeBench-Tiny.csv")
    (folder / "data/images/SafeBench").rename(folder / "data/images/SafeBench-Tiny")
    monkeypatch.chdir(tiny.parent)
    read("figstep", Path(tiny.name), tmp_path / "out")
    assert [one.id for one in load_records(tmp_path / "out")] == ["figstep/1_1", "figstep/2_1"]
