"""Reading the files of a data set, whoever made them: within its folder, within limits, each error with its place.

Text is UTF-8, with or without a byte order mark; lines end in either way.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TextIO, get_args

from ....adapters.artifact.hub import plain_file
from ....adapters.errors import InvalidArtifact
from ..pictures import MAX_BYTES
from ..record import Label
from ..shards import LONGEST, lines_of
from .rows import BadRow, Row, require_columns

Option = Literal["images", "label", "category", "prompt", "columns"]  # what may be said of a data set
MOST_JSON = 2 * 2**30  # bytes of a file that is one JSON document
LABELS: Mapping[str, Label] = {
    **dict.fromkeys(("harmful", "unsafe", "malicious"), "harmful"),
    **dict.fromkeys(("harmless", "safe", "benign"), "harmless"),
}


@dataclass(frozen=True)
class Source:
    """The folder of a data set, or its only file, and what the user says of it.

    Attributes:
        path: what was named.
        images: where its pictures lie, if they lie elsewhere.
        label, category, prompt: of every record, where the files do not say.
        root: the folder of the data set, of which ``path`` is a file.
        columns: field of a record → the column that holds it; of a label, the column whose yes says so.
        out: where its records are written; nothing in that folder is of the data set.
    """

    path: Path
    images: Path | None = None
    label: Label | None = None
    category: str | None = None
    prompt: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    root: Path | None = None
    out: Path | None = None
    _acted: set[str] = field(default_factory=set, repr=False, compare=False)

    def stated(self, name: Literal["label", "category", "prompt"]) -> Any:
        """What the user says of a record whose row does not: ask for it only then."""
        self._acted.add(name)
        return getattr(self, name)

    @property
    def idle(self) -> list[str]:
        """What the user said that no record was made of."""
        said = [name for name in get_args(Option) if name != "columns"]  # which are looked for when rows are read
        return [name for name in said if getattr(self, name) is not None and name not in self._acted]

    @property
    def folder(self) -> Path:
        """The folder that the files lie in."""
        return self.root or (self.path.parent if self.path.is_file() else self.path)

    def rooted(self, patterns: Iterable[str]) -> Source:
        """The same, its folder so many levels above a file that was named as a data set's ``patterns`` have it.

        The pattern with the most levels counts whose folders are called like those above the file.
        """
        path = self.path.absolute()
        for folders in sorted((PurePosixPath(one).parts[:-1] for one in patterns), key=len, reverse=True):
            above = path.parent.parts[-len(folders) :] if folders else ()
            named = len(above) == len(folders) and all(map(fnmatchcase, above, folders))
            if self.path.is_file() and folders and named and path.anchor not in above:
                return replace(self, root=path.parents[len(folders)])
        return self

    @property
    def pictures(self) -> Path:
        """The folder that pictures are named in, where they need not lie beside the files."""
        self._acted.add("images")
        return self.images or self.folder

    def find(self, *patterns: str) -> list[str]:
        """The files of the first pattern that any file matches, relative to the folder, in order of their names.

        A file that was named itself is the only one, whatever it is called.

        Raises:
            BadRow: there are none.
        """
        if self.path.is_file():
            return [self.path.absolute().relative_to(self.folder.absolute()).as_posix()]
        for pattern in patterns:
            if found := sorted(one.relative_to(self.folder).as_posix() for one in self.matching(pattern)):
                return found
        raise BadRow(patterns[0], "", "", "there is no such file", f"Name the folder of {self.folder} that holds it.")

    def every(self, *patterns: str) -> list[str]:
        """The files that match any of the patterns, as :meth:`find` names them.

        Raises:
            BadRow: there are none.
        """
        found = {name for pattern in patterns if self._matches(pattern) for name in self.find(pattern)}
        return sorted(found) if found else self.find(*patterns)

    def _matches(self, pattern: str) -> bool:
        return self.path.is_file() or next(self.matching(pattern), None) is not None

    def matching(self, pattern: str) -> Iterator[Path]:
        """The files that a pattern matches, but those that are written here."""
        found = self.folder.glob(pattern)
        if self.out is None or not (made := self.out.resolve()).is_relative_to(self.folder.resolve()):
            return found
        written = (made, made.with_name(f".{made.name}.writing"))
        return (one for one in found if not any(one.resolve().is_relative_to(place) for place in written))

    def file(self, name: str) -> Path:
        """A file of the folder.

        Raises:
            BadRow: it is missing, no plain file, or lies elsewhere.
        """
        try:
            path = _plain(self.folder, self._inside(name))
        except (InvalidArtifact, OSError, ValueError) as error:
            raise BadRow(name, "", "", _reason(error)) from None
        if not os.access(path, os.R_OK):
            raise BadRow(name, "", "", "may not be read", "Change its permissions.")
        return path

    def beside(self, folder: PurePosixPath, name: str) -> str:
        """What :meth:`picture` calls a picture that lies in ``folder`` of the data set, or where the user says."""
        return name if self.images is not None else str(folder / name)

    def picture(self, row: Row, field: str, name: str, folder: Path | None = None) -> Path:
        """The picture that a row names, in a folder of the data set or in that of the pictures.

        Raises:
            BadRow: the name leads out of the folder, or nothing is there.
        """
        folder = folder or self.pictures
        try:
            return _plain(folder, self._inside(name))
        except (InvalidArtifact, OSError, ValueError) as error:
            elsewhere = "Unpack the pictures there, or correct the row."
            raise row.bad(field, f"the picture {folder / name} {_reason(error)}", elsewhere) from None

    @staticmethod
    def _inside(name: str) -> str:
        """A path that does not leave its folder.

        Raises:
            ValueError: it does.
        """
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.name:
            raise ValueError("leads out of the folder")
        return os.path.normpath(name)

    def table(self, name: str, needed: Iterable[str] = (), *, tabs: bool = False) -> Iterator[Row]:
        """The rows of a CSV file, or of one with tabs, by the names in its first row.

        Raises:
            BadRow: a column is missing, or the file is no such table.
        """
        csv.field_size_limit(max(LONGEST, csv.field_size_limit()))
        number = 1
        try:
            with open(self.file(name), encoding="utf-8-sig", newline="") as file:
                between = "\t" if tabs else _delimiter(file)
                reader = csv.DictReader(_lines(file), delimiter=between, strict=True)
                names = list(reader.fieldnames or ())
                require_columns(name, names, needed)
                if len(set(names)) < len(names):
                    raise BadRow(name, "row 1", "", f"two columns have one name: {', '.join(names)}", "Rename one.")
                for number, values in enumerate(reader, start=2):
                    wrong = "more" if None in values else "fewer" if None in values.values() else ""
                    fault = f"has {wrong} cells than the {len(names)} columns" if wrong else ""
                    yield Row(name, f"row {number}", {} if wrong else values, fault, str(number))
        except (csv.Error, UnicodeDecodeError) as error:
            raise BadRow(name, f"after row {number}", "", f"cannot be read as a table ({error})") from None

    def document(self, name: str) -> Any:
        """What a JSON file holds.

        Raises:
            BadRow: it is none, or too large.
        """
        path = self.file(name)
        if path.stat().st_size > MOST_JSON:
            raise BadRow(name, "", "", f"is larger than {MOST_JSON >> 30} GiB", "Write it as JSON lines.")
        try:
            return json.loads(path.read_bytes().decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise BadRow(name, "", "", f"is not JSON ({error})") from None

    def objects(self, name: str, found: Any = None) -> Iterator[Row]:
        """The objects of a JSON list, or those that a JSON object holds by their keys.

        Args:
            found: the list or the object; what the file holds by default.

        Raises:
            BadRow: it holds neither.
        """
        found = self.document(name) if found is None else found
        if isinstance(found, Mapping):
            pairs: Iterable[tuple[Any, Any]] = found.items()
        elif isinstance(found, list):
            pairs = enumerate(found)
        else:
            raise BadRow(name, "", "", "holds neither a list nor an object")
        for key, value in pairs:
            yield _object(name, "item", key, value)

    def lines(self, name: str) -> Iterator[Row]:
        """The objects of a file with one a line."""
        for number, line in lines_of(self.file(name)):
            if isinstance(line, str):
                yield Row(name, f"line {number}", {}, line)
                continue
            try:
                yield _object(name, "line", number, json.loads(line))
            except json.JSONDecodeError as error:  # whose own line and column are within the line
                yield Row(name, f"line {number}", {}, f"is not JSON ({error.msg}, character {error.pos + 1})")
            except (ValueError, RecursionError) as error:
                yield Row(name, f"line {number}", {}, f"is not JSON ({error})")

    def words(self, name: str) -> Iterator[Row]:
        """The lines of a text file that are not blank, each a row with the only field ``text``."""
        for number, line in lines_of(self.file(name)):
            if isinstance(line, str):
                yield Row(name, f"line {number}", {}, line)
                continue
            try:
                yield Row(name, f"line {number}", {"text": line.decode().strip()}, key=str(number))
            except UnicodeDecodeError:
                yield Row(name, f"line {number}", {}, "is not UTF-8")


def embedded(row: Row, field: str) -> bytes:
    """The bytes that a field holds in base64.

    Raises:
        BadRow: it does not, or they are too many.
    """
    text = row.text(field)
    if len(text) > MAX_BYTES * 4 // 3 + 4:
        raise row.bad(field, f"the picture is larger than {MAX_BYTES >> 20} MiB")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise row.bad(field, "is not base64") from None


def _object(file: str, kind: str, key: Any, value: Any) -> Row:
    if isinstance(value, Mapping):
        return Row(file, f"{kind} {key}", value, key=str(key))
    return Row(file, f"{kind} {key}", {}, "is no object")


def _plain(folder: Path, name: str) -> Path:
    """A file of a folder; a link must lead to one in it, or in the blobs of the folder's own repository.

    Raises:
        InvalidArtifact: it is missing, or leads elsewhere.
    """
    path = (folder / name).resolve()
    return path if path.is_file() and path.is_relative_to(folder.resolve()) else plain_file(folder, name)


def _lines(file: TextIO) -> Iterator[str]:
    """Lines, of which none is longer than :data:`~safetykit.toolkit.data.shards.LONGEST`."""
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST:
            raise csv.Error(f"a line is longer than {LONGEST:,} characters")
        yield line


def _delimiter(file: TextIO) -> str:
    """What parts the cells of a table: commas, or semicolons where its first row has these and no comma."""
    first = file.readline(LONGEST)
    file.seek(0)
    return ";" if ";" in first and "," not in first else ","


def _reason(error: Exception) -> str:
    if isinstance(error, InvalidArtifact):
        return "is a link that leads out of the folder" if error.message.endswith("is a link.") else "is missing"
    return str(error) if isinstance(error, ValueError) else f"cannot be opened ({error})"
