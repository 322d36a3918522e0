"""Records that lie on disk: of each, memory holds some 20 bytes, and an object that reads the rest when asked.

The words of all records are copied into one file without a name; pictures stay where they are.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any, cast

import numpy as np

from .record import CARRIERS, LABELS, SPLITS, Carrier, Label, Record, Split
from .shards import Shard
from .spool import Spool

STRETCH = 4096  # records
_KINDS = 8  # of records of one split and carrier
_RECENT = 256  # records that are kept after they were read


class Store:
    """Where stored records lie.

    Args:
        workers: threads that decode pictures ahead of the model; 0: it waits for each.
    """

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers
        self._words, self._ends = Spool(), array("q", [0])
        self._kinds, self._lengths, self._numbers = array("B"), array("I"), array("I")
        self._shards: list[Shard] = []
        self._firsts = array("q")  # rows at which shards begin
        self._hashes = array("q")  # of ids
        self.read = lru_cache(maxsize=_RECENT)(self._read)

    def __len__(self) -> int:
        return len(self._kinds)

    def begin(self, shard: Shard) -> None:
        """Rows that are added from now on lie in ``shard``."""
        self._shards.append(shard)
        self._firsts.append(len(self))

    def add(self, record: Record, number: int) -> None:
        """Keep a record, whose row in its shard has this number."""
        kind = SPLITS.index(record.split) * len(CARRIERS) + CARRIERS.index(record.carrier)
        kind = _KINDS * kind + 4 * record.plain + 2 * LABELS.index(record.label) + record.pictured
        self._kinds.append(kind)
        self._lengths.append(record.length)
        self._numbers.append(number)
        self._hashes.append(hash(record.id))
        self._words.append(record.model_dump_json(exclude_unset=True).encode())
        self._ends.append(self._words.size)

    def records(self, splits: Collection[Split]) -> Iterator[Record]:
        """Those of some splits, in their order."""
        wanted = {SPLITS.index(split) for split in splits}
        for row, kind in enumerate(self._kinds):
            if kind // (_KINDS * len(CARRIERS)) in wanted:
                yield cast(Record, StoredRecord(self, row))

    def repeated(self) -> int | None:
        """The first row whose id stood before."""
        hashes = np.frombuffer(self._hashes, np.int64)
        order = np.argsort(hashes, kind="stable")
        alike = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        pairs = ((int(order[at]), int(order[at + 1])) for at in alike)
        return min((second for first, second in pairs if self.read(first).id == self.read(second).id), default=None)

    def place(self, row: int) -> str:
        """What an error calls a row."""
        return self._shard(row).place(self._numbers[row])

    def kind(self, row: int) -> int:
        """Split, carrier, label, whether it is plain and whether there is a picture, as one number."""
        return self._kinds[row]

    def length(self, row: int) -> int:
        """As of a record."""
        return self._lengths[row]

    @cached_property
    def pool(self) -> ThreadPoolExecutor | None:
        """The workers."""
        return ThreadPoolExecutor(self.workers, "pictures") if self.workers else None

    def _shard(self, row: int) -> Shard:
        return self._shards[bisect_right(self._firsts, row) - 1]

    def _read(self, row: int) -> Record:
        record = Record.model_validate_json(self._words.read(self._ends[row], self._ends[row + 1]))
        shard, number = self._shard(row), self._numbers[row]
        return record.lying(shard, number)


class StoredRecord:
    """A record of a :class:`Store`; it is used like a :class:`Record`, and is equal to one with the same fields."""

    __slots__ = ("_row", "_store")

    def __init__(self, store: Store, row: int) -> None:
        self._store, self._row = store, row

    @property
    def label(self) -> Label:
        """As of a record."""
        return LABELS[self._store.kind(self._row) // 2 % 2]

    @property
    def carrier(self) -> Carrier:
        """As of a record."""
        return CARRIERS[self._store.kind(self._row) // _KINDS % len(CARRIERS)]

    @property
    def split(self) -> Split:
        """As of a record."""
        return SPLITS[self._store.kind(self._row) // (_KINDS * len(CARRIERS))]

    @property
    def pictured(self) -> bool:
        """As of a record."""
        return bool(self._store.kind(self._row) % 2)

    @property
    def plain(self) -> bool:
        """As of a record."""
        return bool(self._store.kind(self._row) // 4 % 2)

    @property
    def length(self) -> int:
        """As of a record."""
        return self._store.length(self._row)

    @property
    def stretch(self) -> int:
        """As of a record."""
        return self._row // STRETCH if self.pictured else 0

    @property
    def store(self) -> Store:
        """Where it lies."""
        return self._store

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._store.read(self._row), name)

    def __repr__(self) -> str:
        return repr(self._store.read(self._row))

    def __eq__(self, other: object) -> bool:
        mine = self._store.read(self._row)
        if isinstance(other, StoredRecord):
            if other._store is self._store:
                return other._row == self._row
            other = other._store.read(other._row)
        return mine == other

    def __hash__(self) -> int:
        return hash(self._store.read(self._row))
