"""Bytes that wait on disk, in files without a name in the folder for temporary files (``TMPDIR``)."""

from __future__ import annotations

import tempfile
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from errno import EDQUOT, ENOSPC

from ...adapters.errors import UsageError

_SEGMENT = 2**28  # bytes after which a new file is begun
_SEGMENTS = 32  # files at once; the oldest leaves first


class Spool:
    """Pieces of bytes, by the place where they begin; any thread may read."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  stays open as long as the spool
        self._lock = threading.Lock()
        self.size = 0

    def append(self, piece: bytes) -> int:
        """Where ``piece`` begins.

        Raises:
            UsageError: the disk is full.
        """
        with self._lock:
            begin = self.size
            try:
                self._file.seek(begin)
                self._file.write(piece)
            except OSError as error:
                if error.errno not in (ENOSPC, EDQUOT):
                    raise
                raise UsageError(
                    f"{tempfile.gettempdir()} has no room for what is read of the records.",
                    "Name a folder on a larger disk by the environment variable TMPDIR.",
                ) from None
            self.size += len(piece)
            return begin

    def read(self, begin: int, end: int) -> bytes:
        """The bytes of that stretch."""
        with self._lock:
            self._file.seek(begin)
            return self._file.read(end - begin)

    def close(self) -> None:
        """Give the disk's room back."""
        self._file.close()


class Groups:
    """Pieces that come in groups, each read from its source when a piece of it is first asked for.

    Groups that were asked for last lie in up to :data:`_SEGMENTS` files of :data:`_SEGMENT` bytes.

    Args:
        source: all pieces of a group, in order.
    """

    def __init__(self, source: Callable[[Hashable], Iterable[bytes]]) -> None:
        self._source, self._lock = source, threading.Lock()
        self._segments: OrderedDict[Spool, list[Hashable]] = OrderedDict()
        self._kept: dict[Hashable, tuple[Spool, array[int]]] = {}

    def piece(self, group: Hashable, at: int) -> bytes:
        """One piece of a group."""
        with self._lock:
            if group not in self._kept:
                self._keep(group)
            spool, ends = self._kept[group]
            return spool.read(ends[at], ends[at + 1])

    def _keep(self, group: Hashable) -> None:
        if not self._segments or next(reversed(self._segments)).size >= _SEGMENT:
            while len(self._segments) >= _SEGMENTS:
                oldest, groups = self._segments.popitem(last=False)
                oldest.close()
                for one in groups:
                    del self._kept[one]
            self._segments[Spool()] = []
        spool = next(reversed(self._segments))
        ends = array("q", [spool.size])
        for piece in self._source(group):
            spool.append(piece)
            ends.append(spool.size)
        self._segments[spool].append(group)
        self._kept[group] = spool, ends
