"""Records: labelled examples, stored as JSON lines.

A picture is named by a path relative to its file, see :mod:`.pictures`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from ...adapters.errors import InvalidArtifact, UsageError
from .pictures import open_picture
from .sources import data_path

Split = Literal["fit", "calibration", "test"]
Carrier = Literal["text", "image", "typographic", "text+image", "adversarial"]
CARRIERS: tuple[Carrier, ...] = ("text", "image", "text+image", "typographic", "adversarial")


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

    def __repr__(self) -> str:
        """Id, label, carrier, split and the beginning of the prompt; what is not given is left out."""
        prompt = self.prompt if len(self.prompt) <= 60 else f"{self.prompt[:59]}…"
        image = f", image={self.image!r}" if self.image else ""
        return f"Record({self.id!r}, {self.label}, {self.carrier}, {self.split}, {prompt!r}{image})"

    __str__ = __repr__

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


def load_records(path: Path | str, splits: Iterable[Split] | None = None) -> list[Record]:
    """Read a JSONL file, or every ``*.jsonl`` of a folder in name order.

    Args:
        path: the file or folder, or ``reference`` for the bundled records.
        splits: keep only these; all by default.

    Raises:
        UsageError: nothing there, or no record of a wanted split.
        InvalidArtifact: a line is no record, or an id appears twice; file and line are named.
    """
    path = data_path(path)
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


def require_pictures(records: Sequence[Record]) -> None:
    """Refuse records whose picture file is not there; worth calling before long work, for no picture is read.

    Raises:
        UsageError: naming the record and the file.
    """
    for record in records:
        if record.image is None:
            continue
        if not (record._folder / record.image.partition("#")[0]).is_file():
            record.picture()  # says what is wrong


def subset(records: Sequence[Record], limit: int) -> list[Record]:
    """At most ``limit`` records, spread evenly over carriers, labels and look-alikes, in their order."""
    if len(records) <= limit:
        return list(records)
    groups: dict[tuple[str, str, bool], list[Record]] = {}
    for record in records:
        groups.setdefault((record.carrier, record.label, "look-alike" in record.tags), []).append(record)
    taken: set[str] = set()
    while len(taken) < limit:
        for members in groups.values():
            remaining = [record for record in members if record.id not in taken]
            if remaining and len(taken) < limit:
                taken.add(remaining[len(remaining) // 2].id)
    return [record for record in records if record.id in taken]
