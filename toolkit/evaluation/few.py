"""Whether there are enough records for figures that mean something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ..data.records import Record
from .rates import wilson

ENOUGH = 30  # of a label in a split: a share of them is known to about ±17 points


def count_records(records: Iterable[Record]) -> dict[str, int]:
    """Records by ``split/carrier/label``, as manifests count them."""
    return dict(Counter(f"{record.split}/{record.carrier}/{record.label}" for record in records))


def few_records(counts: Mapping[str, int]) -> str:
    """What to say where a split has fewer than :data:`ENOUGH` records of a label; an empty text where none has.

    Args:
        counts: records by ``split/carrier/label``; other counts are not looked at.
    """
    found: Counter[tuple[str, str]] = Counter()
    for name, count in counts.items():
        if name.count("/") == 2:
            split, _, label = name.split("/")
            found[split, label] += count
    few = {key: count for key, count in sorted(found.items()) if count < ENOUGH}
    if not few:
        return ""
    said = ", ".join(f"{count} {label} in split {split}" for (split, label), count in few.items())
    least = min(few.values())
    low, high = wilson(least // 2, least)
    return (
        f"few records: {said}. A share of {least} is known to about ±{50 * (high - low):.0f} points only (95 %), "
        "so take figures on them as a hint."
    )
