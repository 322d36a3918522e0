"""Splitting records anew: what belongs together stays together, and every split gets its share of each kind."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from ...adapters.errors import UsageError
from .record import Record, Split

By = Literal["group", "category", "pair"]


def split_records(
    records: Sequence[Record],
    shares: Mapping[Split, float],
    *,
    by: By = "group",
    seed: int = 0,
    pictures: Sequence[Sequence[str]] | None = None,
) -> list[Split]:
    """The split of each record.

    Pairs and equal requests are never torn.

    Units are dealt out from the largest to the smallest, those of one size in an order that the
    seed draws, each to the split that most lacks its kinds of records (carrier and label), as iterative stratification
    does (Sechidis et al., 2011, https://doi.org/10.1007/978-3-642-23808-6_10) with units in the place of rows.

    Args:
        shares: of the records, by split; they add up to 1.
        by: what else stays together: groups and equal pictures, or categories too, or nothing. A record without a
            group or a category is alone.
        pictures: what tells the pictures of each record from others; by default their paths.

    Raises:
        UsageError: there are fewer units than splits.
    """
    units = _units(records, by, [one.image_names for one in records] if pictures is None else pictures)
    wanted = {split: share for split, share in shares.items() if share > 0}
    if len(units) < len(wanted):
        raise UsageError(
            f"Pairs, equal requests and what --by {by} joins make {len(units)} unit{'s' * (len(units) > 1)} of the "
            f"records, which cannot be {len(wanted)} splits.",
            "Split by another thing (--by), into fewer splits (--shares), or give more records.",
        )
    random.Random(seed).shuffle(units)
    units.sort(key=len, reverse=True)
    kinds = Counter(_kind(record) for record in records)
    missing = {split: {kind: share * count for kind, count in kinds.items()} for split, share in wanted.items()}
    found: list[Split] = ["test"] * len(records)
    empty = set(wanted)
    for left, unit in zip(range(len(units), 0, -1), units, strict=True):
        held = Counter(_kind(records[row]) for row in unit)
        open_ = sorted(empty) if left <= len(empty) else list(wanted)
        best = max(open_, key=lambda split: _need(held, missing[split], kinds))
        empty.discard(best)
        for kind, count in held.items():
            missing[best][kind] -= count
        for row in unit:
            found[row] = best
    return found


def _need(held: Mapping[str, int], missing: Mapping[str, float], kinds: Mapping[str, int]) -> float:
    """How much a split lacks what a unit holds; rare kinds weigh as much as frequent ones."""
    return sum(count * missing[kind] / kinds[kind] for kind, count in held.items())


def _kind(record: Record) -> str:
    return f"{record.carrier}/{record.label}"


def _units(records: Sequence[Record], by: By, pictures: Sequence[Sequence[str]]) -> list[list[int]]:
    """Rows that stay together, in the order of their first ones (union by the names that they share)."""
    parent = list(range(len(records)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[tuple[str, ...], int] = {}
    for row, (record, shown) in enumerate(zip(records, pictures, strict=True)):
        names: list[tuple[str, ...]] = [("id", record.id), ("id", record.pair or record.id)]
        names.append(("request", record.said.decode(), *shown))
        names += [("picture", one) for one in shown if by != "pair"]
        names += [("group", record.group)] * (by != "pair" and bool(record.group))
        names += [("category", record.category)] * (by == "category" and bool(record.category))
        for name in names:
            one, other = root(first.setdefault(name, row)), root(row)
            parent[max(one, other)] = min(one, other)
    units: dict[int, list[int]] = defaultdict(list)
    for row in range(len(records)):
        units[root(row)].append(row)
    return list(units.values())
