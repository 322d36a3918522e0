"""Everything that is wrong with records, at once: each fault with its file, row, field and what mends it."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...adapters.errors import SafetykitError
from ...adapters.near import did_you_mean
from ...adapters.settings import listed
from .listing import files_of, shards_of
from .pictures import is_blank
from .record import SEEN, Record
from .shards import FIELDS, NEEDED, Content, Shard
from .sources import data_path

MOST = 10_000  # faults that are told; the rest is counted
_KINDS = {"missing": "is missing", "extra_forbidden": "is no field of records"}


@dataclass(frozen=True)
class Fault:
    """What is wrong at one place.

    Attributes:
        row: the line or row of ``file``, from 1; 0 of the whole file.
        field: of the record; empty where it is the row itself.
    """

    file: str
    row: int
    field: str
    reason: str
    fix: str


@dataclass(frozen=True)
class _Known:
    """What is remembered of a record, to be compared with the others."""

    file: str
    row: int
    label: str
    split: str
    pair: str | None


@dataclass
class Checked:
    """What a check found.

    Attributes:
        counts: good records by ``split/carrier/label``.
        faults: the first :data:`MOST` of them.
        more: how many more there are.
        warnings: what is read all the same, and misleads; :data:`MOST` of them at most.
        records: the good ones, in their order.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    more: int = 0
    warnings: list[Fault] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """Note a fault."""
        if len(self.faults) < MOST:
            self.faults.append(fault)
        else:
            self.more += 1

    def warn(self, fault: Fault) -> None:
        """Note what misleads."""
        if len(self.warnings) < MOST:
            self.warnings.append(fault)

    def values(self) -> dict[str, Any]:
        """Counts and faults as JSON holds them."""
        lists = {"faults": self.faults, "warnings": self.warnings}
        told = {name: [asdict(fault) for fault in faults] for name, faults in lists.items()}
        return {"counts": dict(self.counts), **told, "more": self.more}


def check_records(path: Path | str) -> Checked:
    """Read all records and pictures, and compare the records with each other.

    Raises:
        UsageError: there is nothing of the kind.
    """
    found, known = Checked(), dict[str, _Known]()
    groups: dict[str, set[str]] = {}
    seen: dict[str, tuple[str, str]] = {}
    for file in files_of(data_path(path)):
        for shard, number, content in _rows(file, found):
            record = _checked(shard, number, content, found)
            if record is None:
                continue
            said = str(shard.path), number
            if record.id in known:
                twin = known[record.id]
                place = f"row {twin.row} of {twin.file}"
                found.add(Fault(*said, "id", f"{record.id!r} is that of {place}, too", "Give each record its own."))
                continue
            known[record.id] = _Known(*said, record.label, record.split, record.pair)
            if record.group:
                groups.setdefault(record.group, set()).add(record.split)
            _compare(record, said, seen, found)
            found.counts[f"{record.split}/{record.carrier}/{record.label}"] += 1
            found.records.append(record)
    _check_pairs(known, found)
    for group in sorted(name for name, splits in groups.items() if len(splits) > 1):
        splits = listed(sorted(groups[group])).replace(" or ", " and ")
        fix = "Split again: `safetykit data split` keeps a group together."
        found.warn(Fault(str(path), 0, "group", f"{group!r} is in the splits {splits}", fix))
    return found


def _rows(file: Path, found: Checked) -> Iterator[tuple[Shard, int, Content]]:
    """The rows of a file; none where it cannot be read, which is noted."""
    try:
        for shard in shards_of(file):
            for number, content in shard.rows():
                yield shard, number, content
    except SafetykitError as error:
        found.add(Fault(str(file), 0, "", error.message.rstrip("."), error.next_step))


def _checked(shard: Shard, number: int, content: Content, found: Checked) -> Record | None:
    """A row as a record, with a picture that can be decoded; None where it is none."""
    said = str(shard.path), number
    if isinstance(content, str):
        found.add(Fault(*said, "", content, "Write it again."))
        return None
    try:
        read = Record.model_validate_json if isinstance(content, bytes) else Record.model_validate
        record = read(content).lying(shard, number)  # type: ignore[arg-type]
    except ValidationError as error:
        for one in error.errors():
            found.add(Fault(*said, *_explained(one)))
        return None
    if not record.prompt.strip() and not (record.messages and record.messages[-1].pictures):
        found.add(Fault(*said, "prompt", "is empty", "Write what a user asks."))
        return None
    if not record.pictured and record.carrier in SEEN:
        found.add(Fault(*said, "image", f"there is no picture, but the carrier is {record.carrier}", "Name one."))
        return None
    try:
        record.pictures()
    except SafetykitError as error:
        reason = error.message.removeprefix(f"{record.place}: ").rstrip(".")
        found.add(Fault(*said, "image", reason, error.next_step))
        return None
    return record


def _explained(error: Any) -> tuple[str, str, str]:
    """Field, reason and fix of one of pydantic's errors."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "json_invalid":
        return "", "is not JSON", "Write one JSON object a line."
    if error["type"] == "missing":
        return name, _KINDS["missing"], f"A record has {NEEDED}."
    if error["type"] == "extra_forbidden":
        return name, _KINDS["extra_forbidden"], did_you_mean(name, FIELDS) or f"There is {listed(FIELDS)}."
    if error["type"] == "literal_error":
        expected = str(error["ctx"]["expected"])
        near = did_you_mean(str(error["input"]), [word.strip("' ") for word in re.split(",| or ", expected)])
        return name, f"cannot be {str(error['input'])[:40]!r}", f"It is {expected}. {near}".strip()
    return name, error["msg"][0].lower() + error["msg"][1:], "Correct it."


def _compare(record: Record, said: tuple[str, int], seen: dict[str, tuple[str, str]], found: Checked) -> None:
    """Warn of a request or a picture that is in another split, too, and of a request that is labelled otherwise."""
    digest, pictures = hashlib.sha256(record.said + b"\0"), record.pictures()
    shown = [hashlib.sha256(f"{one.size}".encode() + one.tobytes()).hexdigest() for one in pictures]
    digest.update("".join(shown).encode())
    split, label = seen.setdefault(digest.hexdigest(), (record.split, record.label))
    if label != record.label:
        found.warn(Fault(*said, "label", f"the same request is {label} in another record", "Decide for one of them."))
    elif split != record.split:
        fix = "Take one of them out: a method may know it by heart."
        found.warn(Fault(*said, "split", f"the same request is in the split {split}, too", fix))
    telling = (one for one, picture in zip(shown, pictures, strict=True) if not is_blank(picture))
    for one in dict.fromkeys(telling):
        split, told = seen.setdefault(f"picture {one}", (record.split, ""))
        if split not in (record.split, told):  # of each picture once
            seen[f"picture {one}"] = split, split
            fix = "Split again: `safetykit data split` keeps equal pictures together."
            found.warn(Fault(*said, "image", f"the same picture is in the split {split}, too", fix))


def _check_pairs(known: dict[str, _Known], found: Checked) -> None:
    for one in known.values():
        if one.pair is None:
            continue
        other = known.get(one.pair)
        if other is None:
            wrong, fix = f"there is no record {one.pair!r}", did_you_mean(one.pair, list(known)[:MOST]) or "Correct it."
        elif other.label == one.label:
            wrong, fix = f"{one.pair!r} has the same label", "A pair is a harmful and a harmless record."
        elif other.split != one.split:
            wrong, fix = f"{one.pair!r} is in the split {other.split}", "Put both in one: `safetykit data split` does."
        else:
            continue
        found.warn(Fault(one.file, one.row, "pair", wrong, fix))
