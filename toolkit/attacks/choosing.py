"""Which records are attacked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from ...adapters.errors import UsageError
from ..data.records import Record, load_records, require_pictures, subset
from ..data.sources import data_path
from ..evaluation.judge import require_harmful_texts
from .options import PgdOptions


@dataclass(frozen=True)
class Chosen:
    """The records that are attacked.

    Attributes:
        records: harmful ones, each a prompt with one picture or none.
        others: records of which the objective ``refusal`` learns how the model refuses.
        left_out: how many were not attacked, by reason.
    """

    records: list[Record]
    others: list[Record]
    left_out: Mapping[str, int]

    @property
    def digest(self) -> str:
        """SHA-256 of the attacked records, pictures included."""
        return hashlib.sha256("".join(record.digest() for record in self.records).encode()).hexdigest()


def chosen(options: PgdOptions) -> Chosen:
    """Read the records, and leave out those that cannot be attacked.

    Raises:
        UsageError: there are none; one has no response to aim at; or an option cannot act on them.
    """
    found = load_records(data_path(options.data), [options.split], **options.reading())
    reasons = Counter[str]()
    kept = []
    for record in found:
        reason = _unfit(record)
        reasons[reason] += 1
        kept += [record] if not reason else []
    if not kept:
        raise UsageError(
            f"None of {len(found)} records can be attacked.",
            "Give harmful records that are a prompt with one picture or none.",
        )
    kept = subset(kept, options.limit) if options.limit else kept
    require_pictures(kept)
    if options.objective != "refusal" and not options.target:
        for record in kept:
            if not (record.response or "").strip():
                raise UsageError(
                    f"{record.place} has no response to aim at.",
                    "Give harmful records responses, name a --target, or take --objective refusal.",
                )
    if options.picture is not None and all(record.pictured for record in kept):
        raise UsageError("--picture does nothing: all records have a picture of their own.", "Leave it out.")
    others: list[Record] = []
    if options.objective == "refusal":
        others = load_records(data_path(options.data), **options.reading())
        require_harmful_texts(others)
    del reasons[""]
    return Chosen(kept, others, dict(reasons))


def _unfit(record: Record) -> str:
    """Why a record is not attacked; empty if it is."""
    if record.label != "harmful":
        return "harmless"
    if record.messages:
        return "conversation"
    return "several pictures" if len(record.image_names) > 1 else ""
