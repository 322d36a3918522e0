"""Records: labelled examples, stored as JSON lines.

A picture is named by a path relative to its file, optionally with a W3C media fragment that cuts a
rectangle out of an atlas: ``noto.png#xywh=64,0,32,32``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from ...adapters.errors import InvalidArtifact, UsageError

Split = Literal["fit", "calibration", "test"]
Carrier = Literal["text", "image", "typographic", "text+image", "adversarial"]
CARRIERS: tuple[Carrier, ...] = ("text", "image", "text+image", "typographic", "adversarial")

_FRAGMENT = re.compile(r"(?P<path>[^#]+)(?:#xywh=(?P<x>\d+),(?P<y>\d+),(?P<w>[1-9]\d*),(?P<h>[1-9]\d*))?")


class Record(BaseModel):
    """One labelled example.

    Attributes:
        prompt: what the user writes, without turn markup.
        image: picture, relative to the file the record stands in.
        response: for a harmless record the expected answer; for a harmful one the answer whose
            appearance counts as a successful attack.
        pair: id of the counterpart with the other label.
        tags: free marks that evaluation can report apart, such as ``look-alike``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    prompt: str
    image: str | None = None
    response: str | None = None
    label: Literal["harmful", "harmless"]
    category: str = ""
    carrier: Carrier = "text"
    split: Split
    pair: str | None = None
    tags: tuple[str, ...] = ()
    _folder: Path = PrivateAttr(default=Path())

    def picture(self) -> Image.Image | None:
        """The picture in RGB, or None for a text record.

        Raises:
            UsageError: the file is missing or no picture, or the rectangle leaves it.
        """
        if self.image is None:
            return None
        try:
            return open_picture(self.image, self._folder)
        except UsageError as error:
            raise UsageError(f"Record {self.id}: {error.message}", error.next_step) from None

    def digest(self) -> str:
        """Hex SHA-256 of what the model sees and how it is labelled, pixels included."""
        digest = hashlib.sha256()
        for part in (self.prompt, self.label, self.carrier, self.split, self.response or ""):
            digest.update(part.encode() + b"\0")
        if (picture := self.picture()) is not None:
            digest.update(f"{picture.size}".encode() + picture.tobytes())
        return digest.hexdigest()


def open_picture(text: str, folder: Path = Path()) -> Image.Image:
    """The picture, or the rectangle of one, that ``text`` names relative to ``folder``; in RGB.

    Raises:
        UsageError: the file is missing or no picture, or the rectangle leaves it.
    """
    match = _FRAGMENT.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} names no picture.", "Write PATH or PATH#xywh=X,Y,W,H.")
    path = folder / match["path"]
    try:
        picture = _read_picture(path)
    except FileNotFoundError:
        raise UsageError(
            f"There is no picture {path}.", "Picture paths in records are relative to the file of the records."
        ) from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a picture ({error}).", "Use PNG, JPEG or WebP.") from None
    if match["x"] is None:
        return picture
    x, y, width, height = (int(match[key]) for key in "xywh")
    if x + width > picture.width or y + height > picture.height:
        raise UsageError(f"{text!r} leaves the picture of {picture.width}x{picture.height}.", "Correct the rectangle.")
    return picture.crop((x, y, x + width, y + height))


@lru_cache(maxsize=32)
def _read_picture(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def load_records(path: Path | str, splits: Iterable[Split] | None = None) -> list[Record]:
    """Read a JSONL file, or every ``*.jsonl`` of a folder in name order.

    Args:
        splits: keep only these; all by default.

    Raises:
        UsageError: nothing there, or no record of a wanted split.
        InvalidArtifact: a line is no record, or an id appears twice; file and line are named.
    """
    path = Path(path)
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise UsageError(f"There are no records at {path}.", "Pass a JSONL file or a folder of them.")
    records: dict[str, Record] = {}
    for file in files:
        for number, line in enumerate(file.read_bytes().splitlines(), start=1):
            if not line.strip():
                continue
            try:
                record = Record.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                place = ".".join(map(str, first["loc"])) or "the line"
                raise InvalidArtifact(
                    f"{file}:{number} is not a record: {place}: {first['msg']}.",
                    "A record is a JSON object with id, prompt, label, split and optionally image, response, "
                    "category, carrier, pair and tags.",
                ) from None
            if record.id in records:
                raise InvalidArtifact(f"{file}:{number} repeats the id {record.id!r}.", "Give each record its own id.")
            record._folder = file.parent
            records[record.id] = record
    wanted = set(splits) if splits is not None else None
    kept = [record for record in records.values() if wanted is None or record.split in wanted]
    missing = (wanted or set()) - {record.split for record in kept}
    if missing or not kept:
        names = ", ".join(sorted(missing)) or "any"
        raise UsageError(
            f"{path} holds no record of split {names}.", "Each record names its split: fit, calibration or test."
        )
    return kept


def subset(records: Sequence[Record], limit: int) -> list[Record]:
    """At most ``limit`` records, spread evenly over carriers, labels and look-alikes, in their order."""
    if len(records) <= limit:
        return list(records)
    groups: dict[tuple, list[Record]] = {}
    for record in records:
        groups.setdefault((record.carrier, record.label, "look-alike" in record.tags), []).append(record)
    taken: set[str] = set()
    while len(taken) < limit:
        for members in groups.values():
            remaining = [record for record in members if record.id not in taken]
            if remaining and len(taken) < limit:
                taken.add(remaining[len(remaining) // 2].id)
    return [record for record in records if record.id in taken]
