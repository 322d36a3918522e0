"""The files that records lie in: JSON lines here, columns in :mod:`.columns`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

REQUIRED = ("id", "prompt", "label", "split")
IMAGE = "image"
FIELDS = (*REQUIRED, IMAGE, "response", "category", "carrier", "pair", "tags")

Content = bytes | Mapping[str, Any] | str  # a line of JSON, a row of columns, or why it cannot be read


class Shard:
    """One file of records; two of the same kind and path are equal."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, Shard) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    @property
    def packed(self) -> bool:
        """Whether pictures lie in the file itself."""
        return False

    def rows(self) -> Iterator[tuple[int, Content]]:
        """Its rows without their pictures, each with its number, from 1."""
        raise NotImplementedError

    def place(self, number: int) -> str:
        """What an error calls a row."""
        raise NotImplementedError

    def picture(self, number: int) -> bytes | None:
        """The bytes of a row's picture, if they lie in this file."""
        raise NotImplementedError


class JsonLines(Shard):
    """A file with a JSON object a line; pictures are files beside it."""

    def rows(self) -> Iterator[tuple[int, Content]]:
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line

    def place(self, number: int) -> str:
        return f"{self.path}:{number}"

    def picture(self, number: int) -> bytes | None:
        return None
