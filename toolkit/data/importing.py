"""From somebody else's data set to a folder of records.

Beside the records, ``source.json`` says what they were made from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from ...adapters.artifact.manifest import sealed
from ...adapters.errors import InvalidArtifact, UsageError
from .importers import BadRow, Draft, Importer, Row, Source
from .record import Split
from .writing import RecordsFolder, bytes_of, writing

SOURCE = "source.json"
_TOLD = 5  # bad rows that are told


@dataclass
class Imported:
    """What an import made.

    Attributes:
        counts: records by ``split/carrier/label``.
        pictures: files.
        left_out: rows that are not as the data set says.
        reasons: what was wrong with the first of them.
        fix: what mends the first.
    """

    counts: Counter[str] = field(default_factory=Counter)
    pictures: int = 0
    left_out: int = 0
    reasons: list[str] = field(default_factory=list)
    fix: str = ""

    def leave_out(self, error: BadRow) -> None:
        """Count a row that cannot be read."""
        self.left_out += 1
        self.fix = self.fix or error.next_step
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
    with writing(out, overwrite=overwrite) as folder:
        for number, (row, draft) in enumerate(_drafts(importer, source, made.leave_out)):
            if chosen is not None and number not in chosen:
                continue
            try:
                if draft.id in seen:
                    raise row.bad("", f"a record before it has the same id, {draft.id!r}")
                folder.add(_fields(importer, draft, split, _kept(folder, row, draft)))
            except BadRow as error:
                made.leave_out(error)
                continue
            except UsageError as error:
                made.leave_out(row.bad("", error.message.rstrip("."), error.next_step))
                continue
            seen.add(draft.id)
            made.counts[f"{split}/{draft.carrier}/{draft.label}"] += 1
        made.pictures = folder.pictures
        _require_good(importer, source, made, skip_bad_rows)
        (folder.folder / SOURCE).write_bytes(sealed(_about(importer, split, made)))
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


def _kept(folder: RecordsFolder, row: Row, draft: Draft) -> str | None:
    """Where the picture is kept; None without one.

    Raises:
        BadRow: it is none that may be read.
    """
    if draft.picture is None:
        return None
    try:
        return folder.keep(draft.picture if isinstance(draft.picture, bytes) else bytes_of(draft.picture))
    except UsageError as error:
        raise row.bad(draft.field, error.message.rstrip("."), error.next_step) from None


def _fields(importer: Importer, draft: Draft, split: Split, image: str | None) -> dict[str, Any]:
    def named(name: str | None) -> str | None:
        return f"{importer.name}/{name}" if name else None

    return {
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


def _require_good(importer: Importer, source: Source, made: Imported, skip_bad_rows: bool) -> None:
    if made.left_out and not skip_bad_rows:
        more = f" (and {made.left_out - len(made.reasons)} more)" if made.left_out > len(made.reasons) else ""
        what = "A row is" if made.left_out == 1 else f"{made.left_out} rows are"
        raise InvalidArtifact(
            f"{what} not as {importer.title} has them. {' '.join(made.reasons)}{more}",
            f"{made.fix} Or leave such rows out and count them: --skip-bad-rows.",
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
