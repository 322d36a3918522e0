"""The files that records lie in: JSON lines here, columns in :mod:`.columns`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REQUIRED = ("id", "prompt", "label", "split")
IMAGE, IMAGES, MESSAGES = "image", "images", "messages"
_MARK = b"\xef\xbb\xbf"  # of byte order, with which some editors begin UTF-8
LONGEST = 16 * 2**20  # bytes of a line
_MORE = ("response", "answers", "intent", "category", "carrier", "pair", "group", "tags")
FIELDS = (*REQUIRED, MESSAGES, IMAGE, IMAGES, *_MORE)
NEEDED = f"id, prompt (or {MESSAGES}), label, split"
OPTIONAL = ", ".join(name for name in FIELDS if name not in (*REQUIRED, MESSAGES))

Content = bytes | Mapping[str, Any] | str  # a line of JSON, a row of columns, or why it cannot be read


def lines_of(path: Path) -> Iterator[tuple[int, bytes | str]]:
    """Lines that are not blank with their numbers, from 1; of one that is too long, which is not held, why."""
    with open(path, "rb") as file:
        number = 1
        while line := file.readline(LONGEST + 1):
            if len(line) > LONGEST:
                yield number, f"it is longer than {LONGEST:,} bytes"
                while line and not line.endswith(b"\n"):
                    line = file.readline(LONGEST)
            elif (line := line.removeprefix(_MARK) if number == 1 else line).strip():
                yield number, line
            number += 1


@dataclass(frozen=True)
class Shard:
    """One file of records; two of the same kind and path are equal."""

    path: Path

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

    def picture(self, number: int, at: int = 0) -> bytes | None:
        """The bytes of a row's picture, or of one of several, if they lie in this file."""
        raise NotImplementedError


class JsonLines(Shard):
    """A file with a JSON object a line; pictures are files beside it."""

    def rows(self) -> Iterator[tuple[int, Content]]:
        return lines_of(self.path)

    def place(self, number: int) -> str:
        return f"{self.path}:{number}"

    def picture(self, number: int, at: int = 0) -> bytes | None:
        return None
