"""The folder of records: pairs in text, split, and drawn into pictures."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

from ....adapters.artifact.manifest import sealed
from ....adapters.errors import UsageError
from ..carriers.made import Brush, Drawing, Made
from ..carriers.names import FormName
from ..importing import SOURCE
from ..record import Split
from ..splitting import split_records
from ..writing import writing
from .choices import By
from .packages import AUTO, Found, found
from .pairs import Pair, most_pairs, text_pairs
from .texts import texts

NOTICE = "NOTICE"
SHARES: Mapping[Split, float] = {"fit": 0.44, "calibration": 0.28, "test": 0.28}
_FORMS: tuple[FormName, ...] = get_args(FormName)
_DRAWN = 3  # forms in which a pair is drawn, beside its text
EACH = 2 * (1 + _DRAWN)  # records that a pair becomes


@dataclass(frozen=True)
class Starter:
    """How many records, and of what.

    Attributes:
        records: about so many; :data:`EACH` of them are a pair in its forms.
        packages: see :func:`.packages.found`.
        by: what no split tears apart: topics, or whole categories, of which the test then asks none that was learnt.
        side: of a picture, in pixels.
        seed: of phrasings, splits, forms and pictures.
    """

    records: int = 2000
    packages: str = AUTO
    by: By = "group"
    side: int = 256
    seed: int = 0


@dataclass
class Written:
    """What was written.

    Attributes:
        drawn: counts by ``split/carrier/label``, and by form.
        categories: records by category.
        packages: what was taken from each, as in ``source.json``.
    """

    drawn: Made
    categories: Counter[str] = field(default_factory=Counter)
    packages: list[dict[str, Any]] = field(default_factory=list)


def write_starter(out: Path, asked: Starter, *, overwrite: bool = False) -> Written:
    """Write the folder, with ``source.json`` and a NOTICE that say what it was made of.

    What is asked is harmful or harmless in the same phrasings, lengths and pictures. Nothing has a ``response``: nobody
    here writes what a successful attack says, so attack success is what is not refused.

    Raises:
        UsageError: more records than there can be, or fewer than can be split; ``out`` is taken; or see
            :func:`.packages.found`.
    """
    packages = found(asked.packages)
    count, most = asked.records // EACH, most_pairs(packages)
    if count > most:
        raise UsageError(
            f"--records cannot be {asked.records:,}: there are {most * EACH:,} at most.",
            "Ask for fewer, or add yours: `safetykit data import`.",
        )
    pairs = split_pairs(text_pairs(count, packages, seed=asked.seed), asked.by, asked.seed)
    brush = Brush(_FORMS, side=asked.side, seed=asked.seed)
    requests, chosen = [record for pair in pairs for record in pair], _forms(pairs, asked.seed)
    drawing = Drawing.of(requests, brush, lambda record, form: form in chosen[record.id])
    made = Made()
    written = Written(made)
    with writing(out, overwrite=overwrite) as folder:
        for record in requests:
            folder.add(record.model_dump(exclude_unset=True))
            made.counts[f"{record.split}/{record.carrier}/{record.label}"] += 1
        drawing.into(folder, made)
        written.categories.update(record.category for record in requests)
        used = Counter(pair[0].category for pair in pairs)
        written.packages = [one.about(used[one.name.lower()]) for one in packages]
        (folder.folder / SOURCE).write_bytes(sealed(_about(asked, drawing, written)))
        (folder.folder / NOTICE).write_text(_notice(packages, drawing.photos), encoding="utf-8")
    return written


def split_pairs(pairs: Sequence[Pair], by: By = "group", seed: int = 0) -> list[Pair]:
    """The pairs with their splits; where topics are parted and a category has enough of them, it is in every split."""
    strata: dict[str, list[int]] = {}
    topics: dict[str, set[str]] = {}
    for at, (record, _) in enumerate(pairs):
        category = record.category if by == "group" and record.category in texts().hazards else ""
        strata.setdefault(category, []).append(at)
        topics.setdefault(category, set()).add(record.group)
    for category in [name for name, held in topics.items() if name and len(held) < len(SHARES)]:
        strata.setdefault("", []).extend(strata.pop(category))
    found = list(pairs)
    for rows in strata.values():
        requests = [record for at in rows for record in pairs[at]]
        splits = split_records(requests, SHARES, by=by, seed=seed)
        for at, split in zip(rows, splits[::2], strict=True):  # a pair is never torn
            bad, good = (record.model_copy(update={"split": split}) for record in pairs[at])
            found[at] = bad, good
    return found


def _forms(pairs: Sequence[Pair], seed: int) -> dict[str, Sequence[FormName]]:
    """The forms in which each request is drawn: both of a pair in the same, and in each split all equally often."""
    draw, choices = random.Random(f"{seed} forms"), list(combinations(_FORMS, _DRAWN))
    decks: dict[str, list[tuple[FormName, ...]]] = {}
    chosen: dict[str, Sequence[FormName]] = {}
    for pair in pairs:
        deck = decks.setdefault(pair[0].split, [])
        if not deck:
            deck += draw.sample(choices, len(choices))
        chosen |= dict.fromkeys((record.id for record in pair), deck.pop())
    return chosen


def _about(asked: Starter, drawing: Drawing, written: Written) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "made": "starter records",
        "licence": "Apache-2.0 for the requests of safetykit; see NOTICE",
        "seed": asked.seed,
        "split_by": asked.by,
        "records": written.drawn.counts.total(),
        "counts": dict(sorted(written.drawn.counts.items())),
        "categories": {texts().hazards.get(name, name): count for name, count in sorted(written.categories.items())},
        "packages": written.packages,
        **drawing.about(written.drawn),
    }


def _notice(packages: Sequence[Found], photos: str | None) -> str:
    lines = [
        "Requests: written for safetykit, Apache-2.0. Harms are named, never described.",
        f"Photos in pictures: {photos}.",
        "Letters in pictures: fonts of DejaVu, see its licence in matplotlib.",
        *(f"{one.name}, from {one.package} {one.version}: {one.licence}. {one.attribution}." for one in packages),
    ]
    return "\n".join(lines) + "\n"
