"""From somebody else's data set to a folder of records.

Records lie in ``records.jsonl``, each picture once in ``pictures/`` under its own digest, as its file was, after it was
decoded; ``source.json`` says what they were made from.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from ...adapters.artifact.manifest import sealed
from ...adapters.artifact.output import atomic_folder, mark_made
from ...adapters.errors import InvalidArtifact, UsageError
from .importers import BadRow, Draft, Importer, Row, Source
from .pictures import MAX_BYTES, format_of
from .record import Record, Split

RECORDS, PICTURES, SOURCE = "records.jsonl", "pictures", "source.json"
_TOLD = 5  # bad rows that are told


@dataclass
class Imported:
    """What an import made.

    Attributes:
        counts: records by ``split/carrier/label``.
        pictures: files.
        left_out: rows that are not as the data set says.
        reasons: what was wrong with the first of them.
    """

    counts: Counter[str] = field(default_factory=Counter)
    pictures: int = 0
    left_out: int = 0
    reasons: list[str] = field(default_factory=list)

    def leave_out(self, error: BadRow) -> None:
        """Count a row that cannot be read."""
        self.left_out += 1
        self.reasons += [error.message] if len(self.reasons) < _TOLD else []


def import_records(
    importer: Importer,
    source: Source,
    out: Path,
    *,
    split: Split = "test",
    limit: int | None = None,
    skip_bad_rows: bool = False,
    overwrite: bool = False,
) -> Imported:
    """Write the records of a data set.

    Args:
        limit: at most so many, spread evenly over carriers, labels and categories.
        skip_bad_rows: leave out and count rows that are not as the data set says, and pictures that cannot be read.

    Raises:
        InvalidArtifact: rows are not as the data set says; the first are told, each with file, row and field.
        UsageError: there is no record, or ``out`` is taken.
    """
    chosen = None if limit is None else _spread(importer, source, limit)
    made, seen = Imported(), set[str]()
    with atomic_folder(out, overwrite=overwrite) as folder, open(folder / RECORDS, "xb") as file:
        kept = _Pictures(folder / PICTURES)
        for number, (row, draft) in enumerate(_drafts(importer, source, made.leave_out)):
            if chosen is not None and number not in chosen:
                continue
            try:
                if draft.id in seen:
                    raise row.bad("", f"a record before it has the same id, {draft.id!r}")
                image = None if draft.picture is None else kept.keep(row, draft)
            except BadRow as error:
                made.leave_out(error)
                continue
            seen.add(draft.id)
            record = _record(importer, draft, split, image)
            made.counts[f"{split}/{record.carrier}/{record.label}"] += 1
            if skip_bad_rows or not made.left_out:
                file.write(record.model_dump_json(exclude_unset=True).encode() + b"\n")
        made.pictures = len(kept)
        _require_good(importer, source, made, skip_bad_rows)
        (folder / SOURCE).write_bytes(sealed(_about(importer, split, made)))
        mark_made(folder, listing=True)
    return made


def _drafts(importer: Importer, source: Source, refused: Callable[[BadRow], None]) -> Iterator[tuple[Row, Draft]]:
    """The records to be, each with its row; rows that are none are told to ``refused``."""
    for row in importer.rows(source):
        try:
            row.require()
            drafts = list(importer.drafts(row, source))
        except BadRow as error:
            refused(error)
            continue
        for draft in drafts:
            yield row, draft


def _spread(importer: Importer, source: Source, limit: int) -> set[int]:
    """Places of at most ``limit`` records, evenly over carriers, labels and categories."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for number, (_, draft) in enumerate(_drafts(importer, source, lambda error: None)):
        groups.setdefault((draft.carrier, draft.label, draft.category), []).append(number)
    shares = Counter[tuple[str, str, str]]()
    left = limit
    while left and (open_ := [key for key, members in groups.items() if shares[key] < len(members)]):
        for key in open_[:left]:
            shares[key] += 1
        left -= min(left, len(open_))
    return {members[at * len(members) // shares[key]] for key, members in groups.items() for at in range(shares[key])}


class _Pictures:
    """The pictures of the records, each under its digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._names)

    def keep(self, row: Row, draft: Draft) -> str:
        """The name of a picture, relative to the records.

        Raises:
            BadRow: it is none that may be read.
        """
        try:
            data = draft.picture if isinstance(draft.picture, bytes) else _bytes_of(draft.picture)
            digest = hashlib.sha256(data).hexdigest()[:32]
            if digest not in self._names:
                self._names[digest] = f"{digest}.{format_of(data)}"
                self._folder.mkdir(exist_ok=True)
                (self._folder / self._names[digest]).write_bytes(data)
        except UsageError as error:
            raise row.bad(draft.field, error.message.rstrip("."), error.next_step) from None
        return f"{PICTURES}/{self._names[digest]}"


def _bytes_of(path: Path | None) -> bytes:
    assert path is not None  # records without a picture keep none
    if path.stat().st_size > MAX_BYTES:
        raise UsageError(f"{path} is larger than {MAX_BYTES >> 20} MiB.", "Save the picture compressed, or smaller.")
    return path.read_bytes()


def _record(importer: Importer, draft: Draft, split: Split, image: str | None) -> Record:
    def named(name: str | None) -> str | None:
        return f"{importer.name}/{name}" if name else None

    found = {
        "id": named(draft.id),
        "prompt": draft.prompt,
        "image": image,
        "response": draft.response,
        "label": draft.label,
        "category": draft.category,
        "carrier": draft.carrier,
        "split": split,
        "pair": named(draft.pair),
        "group": named(draft.group),
        "tags": draft.tags,
    }
    return Record.model_validate({name: value for name, value in found.items() if value not in (None, "", ())})


def _require_good(importer: Importer, source: Source, made: Imported, skip_bad_rows: bool) -> None:
    if made.left_out and not skip_bad_rows:
        more = f" (and {made.left_out - len(made.reasons)} more)" if made.left_out > len(made.reasons) else ""
        what = "A row is" if made.left_out == 1 else f"{made.left_out} rows are"
        raise InvalidArtifact(
            f"{what} not as {importer.title} has them. {' '.join(made.reasons)}{more}",
            "Correct them, or leave them out and count them: --skip-bad-rows.",
        )
    if not made.counts:
        raise UsageError(f"{source.path} holds no record of {importer.title}.", f"It reads {importer.reads}.")


def _about(importer: Importer, split: Split, made: Imported) -> dict[str, JsonValue]:
    return {
        "schema_version": 1,
        "importer": importer.name,
        "title": importer.title,
        "licence": importer.licence,
        "metric": importer.metric,
        "split": split,
        "records": made.counts.total(),
        "left_out": made.left_out,
    }
