"""Folders of records: a record a line in ``records.jsonl``, and each picture once, in ``pictures/``, by its digest."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic_core import PydanticSerializationError

from ...adapters.artifact.output import atomic_folder, mark_made
from ...adapters.errors import UsageError
from .pictures import MAX_BYTES, as_picture, format_of, is_blank, picture_file
from .record import Record
from .shards import LONGEST

RECORDS, PICTURES = "records.jsonl", "pictures"
_BLANK = 2**14  # bytes, beyond which no file of a picture is looked at that might be of one colour


class RecordsFolder:
    """A folder that is being written, see :func:`writing`.

    Attributes:
        folder: where other files may be put.
        pictures: how many files of pictures there are.
    """

    def __init__(self, folder: Path, file: IO[bytes]) -> None:
        self.folder, self._file = folder, file
        self._names: dict[str, str] = {}

    @property
    def pictures(self) -> int:
        return len(self._names)

    def keep(self, data: bytes) -> str:
        """Keep a picture as its file was, once it was decoded; its path relative to the records.

        Raises:
            UsageError: it is none that may be read.
        """
        if (digest := hashlib.sha256(data).hexdigest()[:32]) not in self._names:
            self._names[digest] = name = f"{digest}.{format_of(data)}"
            (self.folder / PICTURES).mkdir(exist_ok=True)
            (self.folder / PICTURES / name).write_bytes(data)
        return f"{PICTURES}/{self._names[digest]}"

    def add(self, fields: Mapping[str, Any]) -> Record:
        """Write a record; fields that are empty are left out.

        Raises:
            UsageError: it could not be read again.
        """
        record, line = line_of(fields)
        self._file.write(line)
        return record


def line_of(fields: Mapping[str, Any]) -> tuple[Record, bytes]:
    """A record and its line of JSON; fields that are empty are left out.

    Raises:
        UsageError: its prompt is empty, it holds half of a pair of UTF-16, which UTF-8 cannot hold, or its line is
            longer than any may be.
    """
    if fields.get("prompt") == "" and not fields.get("messages"):
        raise UsageError(f"Record {fields.get('id')}: the prompt is empty.", "Write what a user asks, or leave it out.")
    record = Record.model_validate({name: value for name, value in fields.items() if value not in (None, "", ())})
    try:
        line = record.model_dump_json(exclude_unset=True).encode() + b"\n"
    except PydanticSerializationError:
        raise UsageError("The record is not valid Unicode.", "Write it as UTF-8.") from None
    if len(line) > LONGEST:
        raise UsageError(f"The record is a line of more than {LONGEST:,} bytes.", "Shorten its texts.")
    return record, line


@contextmanager
def writing(out: Path, *, overwrite: bool = False) -> Iterator[RecordsFolder]:
    """A folder of records that appears whole, or not at all.

    Raises:
        UsageError: ``out`` is taken.
    """
    with atomic_folder(out, overwrite=overwrite) as folder:
        with open(folder / RECORDS, "xb") as file:
            yield RecordsFolder(folder, file)
        mark_made(folder, listing=True)


def bytes_of(path: Path) -> bytes:
    """A picture's file.

    Raises:
        UsageError: it is larger than any picture may be.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB.", "Save the picture compressed, or smaller.")
    return path.read_bytes()


def picture_bytes(record: Record) -> list[bytes]:
    """The file of each of a record's pictures, or a PNG of the rectangle that it names.

    Raises:
        UsageError: one cannot be read.
    """
    record.require_picture()
    return [_bytes_of(record, at, name) for at, name in enumerate(record.image_names)]


def _bytes_of(record: Record, at: int, name: str) -> bytes:
    if (held := record.held(at)) is not None:
        return held
    file = picture_file(name, record.folder)
    if file == record.folder / name:
        return bytes_of(file)
    record.pictures()[at].save(found := io.BytesIO(), "PNG")
    return found.getvalue()


def telling(files: Iterable[bytes]) -> list[bytes]:
    """The files of pictures that can be known from others; those of one colour cannot."""
    return [one for one in files if len(one) > _BLANK or not is_blank(as_picture(one))]


def renamed(record: Record, names: Sequence[str]) -> dict[str, Any]:
    """The fields of a record that were given, with other names of its pictures."""
    fields = record.model_dump(exclude_unset=True)
    if record.image is not None:
        return fields | {"image": names[0]}
    if record.images:
        return fields | {"images": tuple(names)}
    left = iter(names)
    for part in (part for message in fields.get("messages", ()) for part in message["content"]):
        if part["type"] == "image":
            part["image"] = next(left)
    return fields
