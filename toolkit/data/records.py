"""Reading records: from JSON lines, Parquet, or a folder that ``datasets`` saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from ...adapters.artifact.manifest import DataInfo
from ...adapters.errors import InvalidArtifact, SafetykitError, UsageError
from .listing import shards_of
from .options import AUTO, workers_of
from .record import CARRIERS, SPLITS, Carrier, Label, Record, Split
from .shards import NEEDED, OPTIONAL, Content
from .sources import data_path
from .stored import Store

__all__ = ["CARRIERS", "Carrier", "Label", "Record", "Records", "Split", "load_records", "require_pictures", "subset"]
BAD_ROWS = "bad rows left out"  # beside the counts of records
_TOLD = 5  # bad rows that are told with their reasons


class Records(list[Record]):
    """Records of one or several splits, in the order of their files. Words and pictures lie on disk until asked for.

    Attributes:
        skipped: how many rows were left out because they are no records.
        reasons: what was wrong with the first of them.
    """

    skipped: int = 0
    reasons: tuple[str, ...] = ()

    def of(self, chosen: Iterable[Record]) -> Records:
        """Some of them, with the same account of what was left out."""
        found = Records(chosen)
        found.skipped, found.reasons = self.skipped, self.reasons
        return found

    def described(self, data: DataInfo) -> DataInfo:
        """What an artifact says of its records, with the number of rows that were left out."""
        if not self.skipped:
            return data
        return data.model_copy(update={"counts": {**data.counts, BAD_ROWS: self.skipped}})

    def told(self) -> str:
        """What to say about rows that were left out; empty if none was."""
        if not self.skipped:
            return ""
        more = f" and {self.skipped - len(self.reasons)} more" if self.skipped > len(self.reasons) else ""
        return f"{BAD_ROWS}: {self.skipped}. {' '.join(self.reasons)}{more}"


def load_records(
    path: Path | str,
    splits: Iterable[Split] | None = None,
    *,
    skip_bad_rows: bool = False,
    workers: int | str = AUTO,
) -> Records:
    """Read records without their pictures; what is not asked for later stays on disk.

    Args:
        path: a JSONL or Parquet file, a folder of them, a folder that ``datasets`` saved, or ``reference`` for the
            bundled records.
        splits: keep only these; all by default.
        skip_bad_rows: leave out rows that are no records, or whose picture is missing or cannot be decoded, which
            costs decoding every picture once. Otherwise they are refused, pictures when they are asked for.
        workers: threads that decode pictures while the model runs; they change no result.

    Raises:
        UsageError: nothing there, no record of a wanted split, or columns that are not those of records.
        InvalidArtifact: a row is no record, or an id appears twice; file and row are named.
    """
    path = data_path(path)
    store, skipped = Store(workers_of(workers)), 0
    reasons: list[str] = []
    for shard in shards_of(path):
        store.begin(shard)
        for number, content in shard.rows():
            try:
                record = _record(content, shard.place(number))
                if skip_bad_rows:
                    record.lying(shard, number).pictures()
            except SafetykitError as error:
                if not skip_bad_rows:
                    raise
                skipped += 1
                reasons += [error.message] if len(reasons) < _TOLD else []
                continue
            store.add(record, number)
    if (twice := store.repeated()) is not None:
        raise InvalidArtifact(
            f"{store.place(twice)} repeats the id {store.read(twice).id!r}.", "Give each record its own id."
        )
    wanted = set(SPLITS if splits is None else splits)
    kept = Records(store.records(wanted))
    kept.skipped, kept.reasons = skipped, tuple(reasons)
    missing = (set() if splits is None else wanted) - {record.split for record in kept}
    if missing or not kept:
        names = ", ".join(sorted(missing)) or "any"
        raise UsageError(
            f"{path} holds no record of split {names}.", "Each record names its split: fit, calibration or test."
        )
    return kept


def _record(content: Content, place: str) -> Record:
    """A row as a record.

    Raises:
        InvalidArtifact: it is none.
    """
    shape = f"A record has {NEEDED} and optionally {OPTIONAL}."
    if isinstance(content, str):
        raise InvalidArtifact(f"{place} is not a record: {content}.", shape)
    try:
        return Record.model_validate_json(content) if isinstance(content, bytes) else Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        what = ".".join(map(str, first["loc"])) or "the line"
        raise InvalidArtifact(f"{place} is not a record: {what}: {first['msg']}.", shape) from None


def require_pictures(records: Iterable[Record]) -> None:
    """Refuse records whose picture file is not there; worth calling before long work, for no picture is read.

    Raises:
        UsageError: naming the record and the file.
    """
    for record in records:
        if record.pictured:
            record.require_picture()


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
