"""From somebody else's data set to a folder of records.

Beside the records, ``source.json`` says what they were made from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from ...adapters.artifact.manifest import sealed
from ...adapters.errors import InvalidArtifact, UsageError
from .importers import BadRow, Draft, Importer, Row, Source
from .pictures import format_of
from .record import Split
from .writing import RecordsFolder, bytes_of, line_of, writing

SOURCE = "source.json"
TOLD = 5  # bad rows that are told


@dataclass
class Imported:
    """What an import made.

    Attributes:
        counts: records by ``split/carrier/label``.
        pictures: files.
        left_out: rows that are not as the data set says.
        reasons: what was wrong with the first of them.
        fix: what mends the first.
        told: how many of them there are at most.
        unused: columns and files of which nothing was made.
    """

    counts: Counter[str] = field(default_factory=Counter)
    pictures: int = 0
    left_out: int = 0
    reasons: list[str] = field(default_factory=list)
    fix: str = ""
    told: int = TOLD
    unused: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, error: BadRow) -> None:
        """Count a row that cannot be read."""
        self.left_out += 1
        self.fix = self.fix or error.next_step
        self.reasons += [error.message] if len(self.reasons) < self.told else []


def import_records(
    importer: Importer,
    source: Source,
    out: Path,
    *,
    split: Split = "test",
    limit: int | None = None,
    skip_bad_rows: bool = False,
    told: int = TOLD,
    overwrite: bool = False,
) -> Imported:
    """Write the records of a data set.

    Args:
        limit: at most so many, spread evenly over carriers, labels and categories.
        skip_bad_rows: leave out and count rows that are not as the data set says, and pictures that cannot be read.
        told: bad rows that are told.

    Raises:
        InvalidArtifact: rows are not as the data set says, the first of which are told, each with file, row and field;
            or there is no record.
        UsageError: ``out`` is taken, or something that ``source`` says of all records is said by every row.
    """
    source = replace(source.rooted(importer.files) if importer.metric else source, out=out)
    made, seen = Imported(told=told), set[str]()
    with writing(out, overwrite=overwrite) as folder:
        chosen = None if limit is None else _spread(importer, source, limit, split, skip_bad_rows)
        columns: dict[str, None] = {}
        for number, (row, draft) in enumerate(_drafts(importer, source, made.leave_out)):
            columns |= dict.fromkeys(importer.unused(row, source))
            if chosen is not None and number not in chosen:
                continue
            try:
                if draft.id in seen:
                    raise row.bad("", f"a record before it has the same id, {draft.id!r}")
                _add(importer, row, draft, split, folder)
            except BadRow as error:
                made.leave_out(error)
                continue
            seen.add(draft.id)
            made.counts[f"{split}/{draft.carrier}/{draft.label}"] += 1
        made.pictures = folder.pictures
        made.unused = {"columns": list(columns), "files": list(importer.unread(source))}
        _require_good(importer, source, made, skip_bad_rows)
        _require_acting(source)
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


Kind = tuple[str, str, str]  # carrier, label and category


def _spread(importer: Importer, source: Source, limit: int, split: Split, skip_bad_rows: bool) -> set[int]:
    """Places of at most ``limit`` records, evenly over carriers, labels and categories.

    Where bad rows are skipped, others take their places as far as there are; theirs are among the places, to be told.
    """
    groups: dict[Kind, list[int]] = {}
    for number, (_, draft) in enumerate(_drafts(importer, source, lambda error: None)):
        groups.setdefault((draft.carrier, draft.label, draft.category), []).append(number)
    good, chosen, ids = Counter[Kind](), set[int](), set[str]()
    while fresh := _dealt(groups, limit - good.total(), good):
        chosen |= fresh
        if not skip_bad_rows:
            break
        for number, (row, draft) in enumerate(_drafts(importer, source, lambda error: None)):
            if number not in fresh or draft.id in ids:
                continue
            try:
                _add(importer, row, draft, split)
            except BadRow:
                continue
            ids.add(draft.id)
            good[draft.carrier, draft.label, draft.category] += 1
        groups = {key: [one for one in members if one not in fresh] for key, members in groups.items()}
    return chosen


def _dealt(groups: Mapping[Kind, list[int]], count: int, taken: Mapping[Kind, int]) -> set[int]:
    """At most ``count`` members, of the groups of which the fewest are ``taken``, evenly over each."""
    shares = Counter[Kind]()
    waiting = [(taken.get(key, 0), at, key) for at, (key, members) in enumerate(groups.items()) if members]
    heapify(waiting)
    while waiting and shares.total() < count:
        held, at, key = heappop(waiting)
        shares[key] += 1
        if shares[key] < len(groups[key]):
            heappush(waiting, (held + 1, at, key))
    return {groups[key][at * len(groups[key]) // share] for key, share in shares.items() for at in range(share)}


def _add(importer: Importer, row: Row, draft: Draft, split: Split, folder: RecordsFolder | None = None) -> None:
    """Write a record into a folder; without one, only try whether it could be written.

    Raises:
        BadRow: it is none that could be read again, or its picture is none.
    """
    field, shown = draft.field, draft.pictures if draft.picture is None else (draft.picture,)
    try:
        files = [one if isinstance(one, bytes) else bytes_of(one) for one in shown]
        names = [format_of(one) if folder is None else folder.keep(one) for one in files]
        field = ""
        fields = _fields(importer, draft, split, names)
        line_of(fields) if folder is None else folder.add(fields)
    except ValidationError as error:  # of a conversation
        raise row.bad("messages", error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    except UsageError as error:
        raise row.bad(field, error.message.rstrip("."), error.next_step) from None


def _fields(importer: Importer, draft: Draft, split: Split, images: Sequence[str]) -> dict[str, Any]:
    def named(name: str | None) -> str | None:
        return f"{importer.name}/{name}" if name else None

    return {
        "id": named(draft.id),
        "messages": draft.messages,
        "prompt": draft.prompt,
        "image": None if draft.picture is None else images[0],
        "images": () if draft.picture is not None else tuple(images),
        "response": draft.response,
        "answers": draft.answers,
        "intent": draft.intent,
        "label": draft.label,
        "category": draft.category,
        "carrier": draft.carrier,
        "split": split,
        "pair": named(draft.pair),
        "group": named(draft.group),
        "tags": draft.tags,
    }


def _require_good(importer: Importer, source: Source, made: Imported, skip_bad_rows: bool) -> None:
    more = f" (and {made.left_out - len(made.reasons)} more)" if made.left_out > len(made.reasons) else ""
    if made.left_out and not skip_bad_rows:
        what = "A row is" if made.left_out == 1 else f"{made.left_out} rows are"
        raise InvalidArtifact(
            f"{what} not as {importer.title} has them. {' '.join(made.reasons)}{more}",
            f"{made.fix} Or leave such rows out and count them: --skip-bad-rows.",
        )
    if not made.counts:
        bad = f" {made.left_out} bad rows were left out. {' '.join(made.reasons)}{more}" if made.left_out else ""
        fix = made.fix or f"It reads {importer.reads}."
        raise InvalidArtifact(f"{source.path} holds no record of {importer.title}.{bad}", fix)


def _require_acting(source: Source) -> None:
    for name in source.idle:
        why = "no row names a picture" if name == "images" else "every row says its own"
        raise UsageError(f"What is given as {name} does nothing with {source.path}: {why}.", "Leave it out.")


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
