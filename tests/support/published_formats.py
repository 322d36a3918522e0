"""Data in common formats, in small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from publishing import Published, draw, drawn_bytes, write_json, write_lines, write_table


def _columns() -> list[dict[str, Any]]:
    rows = [{"question": f"a request {at}", "label": at, "image": None} for at in range(3)]
    for row in rows:
        row["label"] %= 2
    rows[1]["image"] = {"bytes": drawn_bytes(1), "path": "a.png"}
    rows[2]["image"] = {"bytes": None, "path": "pictures/b.png"}
    return rows


def _llava(folder: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nWhat is this?"},
        {"from": "gpt", "value": "A thing."},
        {"from": "human", "value": "And that?"},
        {"from": "gpt", "value": "Another."},
    ]
    rows = [{"id": "a", "conversations": turns[2:]}, {"id": "b", "image": "coco/b.jpg", "conversations": turns}]
    write_json(folder / "mine.json", rows)
    draw(folder / "coco/b.jpg", 1)


def _json(folder: Path) -> None:
    rows = [
        {"question": "a request", "unsafe": False, "image": "a.webp"},
        {"question": "a harmful request", "unsafe": True, "image": "b.webp", "carrier": "typographic"},
    ]
    write_lines(folder / "mine.jsonl", rows)
    for at, row in enumerate(rows):
        draw(folder / row["image"], at)


def _parquet(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    (folder / "data").mkdir(parents=True)
    rows = [{**row, "label": ("safe", "unsafe")[row["label"]]} for row in _columns()]
    parquet.write_table(pa.Table.from_pylist(rows), folder / "data/train-00000-of-00001.parquet")
    draw(folder / "pictures/b.png", 2)


def _datasets(folder: Path) -> None:
    """As ``datasets`` saves it; the number of a class is its name's place."""
    import pyarrow as pa

    features = {"label": {"names": ["safe", "unsafe"], "_type": "ClassLabel"}}
    table = pa.Table.from_pylist(_columns())
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (folder / "test").mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / "test" / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    write_json(folder / "test/state.json", {"_data_files": [{"filename": name}]})
    write_json(folder / "dataset_dict.json", {"splits": ["test"]})
    draw(folder / "pictures/b.png", 2)


def _images(folder: Path) -> None:
    for at, name in enumerate(("harmful/weapons/1.png", "safe/2.jpg")):
        draw(folder / name, at)
    (folder / "harmful/notes.txt").write_text("words")


def _csv(folder: Path) -> None:
    rows = [
        {"prompt": f"a request {at}", "label": label, "image": f"pictures/{at}#1.png" if at else ""}
        for at, label in enumerate(("harmful", "safe", "malicious"))
    ]
    write_table(folder / "mine.csv", rows)
    for at in (1, 2):
        draw(folder / f"pictures/{at}#1.png", at)


FORMATS: dict[str, Published] = {
    "llava": Published(
        _llava,
        "mine.json",
        2,
        {"harmless": 2},
        {"text": 1, "image": 1},
        picture="coco/b.jpg",
        field="conversations",
        names="image",
    ),
    "json": Published(
        _json,
        "mine.jsonl",
        2,
        {"harmful": 1, "harmless": 1},
        {"image": 1, "typographic": 1},
        picture="b.webp",
        field="question",
        names="image",
    ),
    "parquet": Published(
        _parquet,
        "data/train-00000-of-00001.parquet",
        3,
        {"harmful": 1, "harmless": 2},
        {"text": 1, "image": 2},
        picture="pictures/b.png",
    ),
    "datasets": Published(
        _datasets,
        "test/data-00000-of-00001.arrow",
        3,
        {"harmful": 1, "harmless": 2},
        {"text": 1, "image": 2},
        picture="pictures/b.png",
    ),
    "images": Published(
        _images,
        "harmful/weapons/1.png",
        2,
        {"harmful": 1, "harmless": 1},
        {"image": 2},
        options=("prompt=What is this?",),
        picture="safe/2.jpg",
        pictures_only=True,
    ),
    "csv": Published(
        _csv,
        "mine.csv",
        3,
        {"harmful": 2, "harmless": 1},
        {"text": 1, "image": 2},
        picture="pictures/2#1.png",
        field="prompt",
        names="image",
    ),
}
