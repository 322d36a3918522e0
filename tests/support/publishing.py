"""What data sets in small are written with, and what is said of each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Published:
    """A data set as it lies on disk.

    Attributes:
        make: fills a folder.
        table: the file with its rows, relative to the folder.
        records: how many it holds.
        labels: records by label.
        carriers: records by carrier.
        options: what its import needs besides.
        picture: one of its pictures, relative to the folder; empty without any.
        field: a column or key that every row must have.
        names: the field with the path of a picture, if rows hold one.
        pictures_only: there is no table, and a picture that is not there is none that is missing.
    """

    make: Callable[[Path], None]
    table: str
    records: int
    labels: dict[str, int]
    carriers: dict[str, int]
    options: tuple[str, ...] = ()
    picture: str = ""
    field: str = ""
    names: str = ""
    pictures_only: bool = False


def draw(path: Path, colour: int = 0) -> None:
    """A small picture in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (colour % 256, 40, 90)).save(path)


def write_table(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: Path, values: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))


def drawn_bytes(colour: int) -> bytes:
    Image.new("RGB", (8, 8), (colour, 40, 90)).save(held := io.BytesIO(), "PNG")
    return held.getvalue()


def only(count: int, label: str, carrier: str) -> dict[str, Any]:
    return {"records": count, "labels": {label: count}, "carriers": {carrier: count}}
