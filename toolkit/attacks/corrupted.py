"""Folders of records whose pictures are corrupted, every picture in every kind and severity."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...adapters.artifact.manifest import sealed
from ...adapters.errors import UsageError
from ..data.importing import SOURCE
from ..data.records import Record, load_records, subset
from ..data.sources import data_path
from ..data.writing import renamed, writing
from ..progress import Progress
from .corruptions import corrupted
from .options import CorruptOptions

CORRUPTION = "corruption:"  # of the tags that name what was done


@dataclass
class Corrupted:
    """What was made.

    Attributes:
        counts: records by ``split/carrier/label``.
        made: records by corruption.
        left_out: records without a picture.
    """

    counts: Counter[str] = field(default_factory=Counter)
    made: Counter[str] = field(default_factory=Counter)
    left_out: int = 0


def pictured(options: CorruptOptions) -> tuple[list[Record], int]:
    """The records whose pictures are corrupted, and how many have none.

    Raises:
        UsageError: none has a picture.
    """
    assert options.data is not None
    found = load_records(data_path(options.data), [options.split], **options.reading())
    kept = [record for record in found if record.pictured]
    if not kept:
        raise UsageError(
            f"None of {len(found)} records of split {options.split} shows a picture.",
            "Give records with pictures; `safetykit data carriers` draws requests into some.",
        )
    return subset(kept, options.limit) if options.limit else kept, len(found) - len(kept)


def corrupt(
    records: Sequence[Record],
    options: CorruptOptions,
    out: Path,
    *,
    left_out: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Corrupted:
    """Write a folder with every record once for each kind and severity.

    A record has the id of the one it was made of with kind and severity, the tags ``corruption:KIND`` and
    ``corruption:KIND-SEVERITY``, and everything else that record has; its group is that record's id, if it has none,
    and its pair the counterpart in the same kind and severity. What is left to chance depends on the seed, the record,
    kind and severity alone.

    Raises:
        UsageError: a picture cannot be read; or ``out`` is taken.
    """
    kinds, severities = options.kinds, options.severities
    ids = {record.id for record in records}
    done, total = 0, len(records) * len(kinds) * len(severities)
    made = Corrupted(left_out=left_out)
    with writing(out, overwrite=overwrite) as folder:
        for record in records:
            shown = record.pictures()
            for kind in kinds:
                for severity in severities:
                    draw = random.Random(f"{options.seed} {kind} {severity} {record.id}")
                    names = [folder.keep(corrupted(one, kind, severity, draw)) for one in shown]
                    name = f"{kind}-{severity}"
                    fields = {
                        **renamed(record, names),
                        "id": f"{record.id}-{name}",
                        "pair": f"{record.pair}-{name}" if record.pair in ids else None,
                        "group": record.group or record.id,
                        "tags": (*record.tags, f"{CORRUPTION}{kind}", f"{CORRUPTION}{name}"),
                    }
                    written = folder.add(fields)
                    made.counts[f"{written.split}/{written.carrier}/{written.label}"] += 1
                    made.made[name] += 1
            done += len(kinds) * len(severities)
            if progress:
                progress(done, total)
        about: dict[str, Any] = {
            "made": "corrupted pictures",
            "kinds": list(kinds),
            "severities": list(severities),
            "seed": options.seed,
            "split": options.split,
        }
        (folder.folder / SOURCE).write_bytes(sealed(about))
    return made
