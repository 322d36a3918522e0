"""Seed data sets as PyRIT (https://github.com/microsoft/PyRIT) keeps them: YAML with the prompts under ``seeds``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .importer import Draft
from .rows import BadRow, Row
from .source import Source

SUFFIX = ".prompt"
_MOST = 16 * 2**20  # bytes
_SHARED = ("harm_categories", "data_type")  # said once of all seeds, unless a seed says otherwise


def seed_rows(source: Source, name: str) -> Iterator[Row]:
    """The seeds of a file, each with what the file says of all of them.

    Raises:
        BadRow: it is no such file.
    """
    import yaml

    path = source.file(name)
    if path.stat().st_size > _MOST:
        raise BadRow(name, "", "", f"is larger than {_MOST >> 20} MiB")
    try:
        found: Any = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadRow(name, "", "", f"is not YAML ({error})") from None
    if not isinstance(found, Mapping) or not isinstance(found.get("seeds"), list):
        raise BadRow(name, "", "seeds", "is missing", "Name a file of seeds, as PyRIT keeps them.")
    shared = {key: found[key] for key in _SHARED if key in found}
    for row in source.objects(name, found["seeds"]):
        yield Row(row.file, row.name, {**shared, **row.values}, row.fault, row.key)


def seed_draft(row: Row, name: str) -> Draft:
    """A harmful request in text.

    Raises:
        BadRow: it is none.
    """
    if row.has("data_type") and row.text("data_type") != "text":
        raise row.bad("data_type", f"is {row.text('data_type')}, not text")
    said = row.values.get("harm_categories") or ""
    first = said[0] if isinstance(said, list) else said
    if not isinstance(first, str):
        raise row.bad("harm_categories", "is no list of names")
    return Draft(name, row.text("value"), "harmful", "text", category=first)
