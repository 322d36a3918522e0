"""One row of somebody else's file, and what is wrong with it."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ....adapters.errors import InvalidArtifact
from ....adapters.near import did_you_mean
from ....adapters.settings import listed

_SHOWN = 40  # characters of a value in an error
_NAME, _REASON = 200, 600  # of a name, and of what is wrong or mends it


def plain(text: str, most: int) -> str:
    """Text for an error, with control characters escaped and no more than ``most`` characters, the middle left out."""
    half = most // 2
    short = text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in short)


class BadRow(InvalidArtifact):
    """A row, or a whole file, that is not what its data set says.

    Attributes:
        file: relative to the data set's folder.
        row: the number or the key of the row; empty of a whole file.
        field: the column or the key that is wrong; empty where it is the row itself.
        reason: what is wrong with it.
    """

    def __init__(self, file: str, row: str, field: str, reason: str, fix: str = "Correct it, or take it out.") -> None:
        place = ", ".join(plain(part, _NAME) for part in (file, row, field) if part)
        reason = plain(reason, _REASON)
        super().__init__(f"{place}: {reason}.", plain(fix, _REASON))
        self.file, self.row, self.field, self.reason = file, row, field, reason


@dataclass(frozen=True)
class Row:
    """The values of a row by the names of its columns or keys.

    Attributes:
        file: relative to the data set's folder.
        name: what an error calls the row, such as ``row 3``.
        values: as the file has them.
        fault: why it could not be read; empty where it could.
        key: what the file calls it, if it stands in an object by keys; otherwise its number.
    """

    file: str
    name: str
    values: Mapping[str, Any]
    fault: str = ""
    key: str = ""

    def require(self) -> None:
        """Refuse what could not be read as a row.

        Raises:
            BadRow: saying why.
        """
        if self.fault:
            raise self.bad("", self.fault)

    def bad(self, field: str, reason: str, fix: str = "Correct it, or take it out.") -> BadRow:
        """An error at a field of this row."""
        return BadRow(self.file, self.name, field, reason, fix)

    def has(self, field: str) -> bool:
        """Whether the field is there and not empty."""
        return self.values.get(field) not in (None, "")

    def value(self, field: str) -> Any:
        """The field as it is.

        Raises:
            BadRow: there is none.
        """
        if field not in self.values or self.values[field] is None:
            known = [name for name in self.values if isinstance(name, str)]
            hint = did_you_mean(field, known)
            raise self.bad(field, "is missing", f"The row has {listed(known) if known else 'nothing'}. {hint}".strip())
        return self.values[field]

    def text(self, field: str) -> str:
        """Words, which are not blank.

        Raises:
            BadRow: they are, or are no text that UTF-8 holds.
        """
        found = self.value(field)
        if not isinstance(found, str):
            raise self.bad(field, f"is {_shown(found)}, not a text")
        try:
            found.encode()
        except UnicodeEncodeError:
            raise self.bad(field, "is not valid Unicode") from None
        if not found.strip():
            raise self.bad(field, "is empty")
        return found.strip()

    def word(self, field: str) -> str:
        """A name or a number, as text.

        Raises:
            BadRow: it is neither.
        """
        found = self.value(field)
        if isinstance(found, int) and not isinstance(found, bool):
            return str(found)
        return self.text(field)

    def one_of(self, field: str, known: Mapping[str, Any]) -> Any:
        """What a name or number of the file stands for, whatever its capitals.

        Args:
            known: names in small letters → what they stand for.

        Raises:
            BadRow: it is none of them.
        """
        found = self.value(field)
        name = str(found).strip().casefold()
        if isinstance(found, (list, dict)) or name not in known:
            raise self.bad(field, f"cannot be {_shown(found)}", f"It is {listed(list(known))}.")
        return known[name]

    def items(self, field: str, kind: type) -> list[Any]:
        """A list of values of one type, which is not empty.

        Raises:
            BadRow: it is none.
        """
        found = self.value(field)
        if not isinstance(found, list) or not found or not all(isinstance(one, kind) for one in found):
            raise self.bad(field, f"is no list of {_KINDS[kind]}")
        return found

    def packed(self, field: str) -> bytes:
        """A picture that lies in the row: the bytes of a file, alone or beside its name.

        Raises:
            BadRow: there are none.
        """
        found = self.value(field)
        held = found.get("bytes") if isinstance(found, Mapping) else found
        if not isinstance(held, bytes) or not held:
            raise self.bad(field, "holds no bytes of a picture")
        return held

    def at(self, name: str, values: Any) -> Row:
        """A part of this row as a row.

        Raises:
            BadRow: it is no object.
        """
        if not isinstance(values, Mapping):
            raise self.bad(name, f"is {_shown(values)}, not an object")
        return Row(self.file, f"{self.name}, {name}", values)


_KINDS: Mapping[type, str] = {str: "texts", int: "whole numbers", dict: "objects"}


def require_columns(file: str, found: Iterable[str], needed: Iterable[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        BadRow: naming those that are missing and those that there are.
    """
    names = list(found)
    if lacking := [name for name in needed if name not in names]:
        hint = did_you_mean(lacking[0], names)
        raise BadRow(
            file, "", ", ".join(lacking), f"there is no such column, but {', '.join(names) or 'none'}", hint or _COLUMNS
        )


_COLUMNS = "Name the columns as the data set does, or import another kind."


def _shown(value: Any) -> str:
    text = reprlib.repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
