"""Each importer on its data set in small, and on every fault that its layout can have."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from published import PUBLISHED, write_json, write_table

from safetykit.adapters.errors import InvalidArtifact, SafetykitError
from safetykit.toolkit.data.importers import Source, get_importer, importers, recognised
from safetykit.toolkit.data.importing import import_records
from safetykit.toolkit.data.records import load_records


def imported(kind, folder, out, **options):
    source = {name: options.pop(name) for name in ("label", "prompt", "columns", "images") if name in options}
    return import_records(get_importer(kind), Source(folder, **source), out, **options)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "published"


def test_every_importer_has_a_case():
    assert set(PUBLISHED) == set(importers())


@pytest.mark.parametrize("kind", PUBLISHED)
def test_it_reads_the_layout_of_its_publishers(kind, folder, tmp_path):
    case = PUBLISHED[kind]
    case.make(folder)
    made = imported(kind, folder, tmp_path / "out", **dict(one.split("=") for one in case.options))
    records = load_records(tmp_path / "out")
    assert len(records) == case.records == made.counts.total() and not made.left_out
    assert Counter(record.label for record in records) == case.labels
    assert Counter(record.carrier for record in records) == case.carriers
    assert set(case.carriers) <= set(get_importer(kind).carriers or case.carriers)
    for record in records:
        assert record.pictured == (record.carrier != "text") and record.id.startswith(f"{kind}/")
        assert not record.pictured or record.picture().size == (8, 8)
    about = json.loads((tmp_path / "out" / "source.json").read_text())
    assert about["importer"] == kind and about["licence"] and about["records"] == case.records


@pytest.mark.parametrize("kind", [kind for kind in PUBLISHED if get_importer(kind).metric])
def test_a_file_may_be_named_instead_of_its_folder(kind, folder, tmp_path):
    case = PUBLISHED[kind]
    case.make(folder)
    options = dict(one.split("=") for one in case.options)
    imported(kind, folder, tmp_path / "all", **options)
    imported(kind, folder / case.table, tmp_path / "out", **options)
    lines = (tmp_path / "out/records.jsonl").read_text().splitlines()
    assert lines and set(lines) <= set((tmp_path / "all/records.jsonl").read_text().splitlines())


@pytest.mark.parametrize("kind", [kind for kind in PUBLISHED if get_importer(kind).distinct])
def test_it_is_known_by_its_files(kind, folder):
    PUBLISHED[kind].make(folder)
    assert recognised(folder).name == kind


def change(path: Path, field: str, value):
    """Change a field of the last row of a table, whatever its form; None takes it out."""
    text = path.read_text()
    if path.suffix in (".csv", ".tsv"):
        tabs = "\t" if path.suffix == ".tsv" else ","
        rows = list(csv.DictReader(text.splitlines(keepends=True), delimiter=tabs))
        for row in rows if value is None else rows[-1:]:
            row.pop(field) if value is None else row.update({field: value})
        return write_table(path, rows, tabs)
    if text.startswith("{") and text.count("\n") > 1:
        rows = [json.loads(line) for line in text.splitlines()]
        rows[-1].pop(field) if value is None else rows[-1].update({field: value})
        return path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = json.loads(text)
    members = found if isinstance(found, list) else found.get("data", list(found.values()))
    members[-1].pop(field) if value is None else members[-1].update({field: value})
    return write_json(path, found)


def missing_picture(case, folder):
    (folder / case.picture).unlink()
    return "is missing"


def linked_picture(case, folder):
    path = folder / case.picture
    elsewhere = folder.parent / "elsewhere.bin"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    return "is a link"


def no_picture(case, folder):
    (folder / case.picture).write_bytes(b"these are words")
    return "cannot be read as a picture"


def wrong_column(case, folder):
    change(folder / case.table, case.field, None)
    return case.field if Path(case.table).suffix in (".csv", ".tsv") else "is missing"


def outside(case, folder):
    change(folder / case.table, case.names, "../../etc/passwd")
    return "leads out of the folder"


def absolute(case, folder):
    change(folder / case.table, case.names, "/etc/passwd")
    return "is missing" if case.names == "task_id" else "leads out of the folder"


def bad_json(case, folder):
    path = folder / case.table
    text = path.read_text().rstrip()
    path.write_text(text[: len(text) - 5])
    return "is not JSON"


def bad_bytes(case, folder):
    path = folder / case.table
    path.write_bytes(path.read_bytes() + b'"\xff\xfe')
    return ""  # its place is told


def no_arrow(case, folder):
    path = folder / case.table
    path.write_bytes(path.read_bytes()[:-40])
    return "row"


def missing_file(case, folder):
    (folder / case.table).unlink()
    return "no such file"


TEXTUAL = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".prompt")
FAULTS = {
    missing_picture: lambda case: case.picture and not case.pictures_only,
    linked_picture: lambda case: case.picture,
    no_picture: lambda case: case.picture,
    wrong_column: lambda case: case.field,
    outside: lambda case: case.names,
    absolute: lambda case: case.names,
    bad_json: lambda case: Path(case.table).suffix in (".json", ".jsonl"),
    bad_bytes: lambda case: Path(case.table).suffix in TEXTUAL,
    no_arrow: lambda case: Path(case.table).suffix in (".parquet", ".arrow"),
    missing_file: lambda case: True,
}


@pytest.mark.parametrize(
    ("kind", "fault"),
    [(kind, fault) for kind, case in PUBLISHED.items() for fault, can in FAULTS.items() if can(case)],
    ids=lambda one: one if isinstance(one, str) else one.__name__,
)
def test_it_refuses_what_is_wrong(kind, fault, folder, tmp_path):
    case = PUBLISHED[kind]
    case.make(folder)
    said = fault(case, folder)
    options = dict(one.split("=") for one in case.options)
    if fault is missing_file and case.records > len(load_if_any(kind, folder, tmp_path / "rest", options)):
        return  # the other files were read, or it was refused
    with pytest.raises(SafetykitError) as refused:
        imported(kind, folder, tmp_path / "out", **options)
    told = str(refused.value)
    assert said in told, told
    assert Path(case.table).suffix.lstrip(".") in told or Path(case.picture).name in told
    assert not (tmp_path / "out").exists()


def load_if_any(kind, folder, out, options):
    """The records that are left; none where it is refused."""
    try:
        imported(kind, folder, out, **options)
    except InvalidArtifact as error:
        assert "no such file" in str(error) or "which is not in it" in str(error)
        return []
    return load_records(out)
