"""Resuming long work: finished pieces are appended to a file, and found again after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar, TextIO

from ...adapters.artifact.held import ends_with_output
from ..distributed.world import from_first, is_first


class Journal:
    """Finished pieces of one piece of work, by key.

    The first line says which work it is (model, records, settings); a journal of other work is set
    aside, never mixed in. A last line cut off by a crash is dropped.

    Attributes:
        done: what earlier runs and this one have finished.
        unfinished: the journal that was opened last and not finished.
    """

    unfinished: ClassVar[Journal | None] = None

    def __init__(self, path: Path, identity: Any) -> None:
        self.path = Path(path)
        head = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.done: dict[str, Any] = {}
        self._file: TextIO | None = None
        if is_first():  # of several processes, which all know what is done
            size = self._read(head)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  stays open until close()
            self._file.truncate(size)  # a cut-off line must not run into the next one; what is whole stays on the disk
            if not size:
                self._append(head)
        self.done = from_first(self.done)
        Journal.unfinished = self

    def add(self, key: str, value: Any) -> None:
        """Note that ``key`` is finished; it survives a crash from here on."""
        self.done[key] = value
        self._append(json.dumps((key, value)))

    def finish(self) -> None:
        """The work is complete: remove the journal, or leave it to the output that it ends with."""
        Journal.unfinished = None
        if self._file is not None:
            self._file.close()
            if not ends_with_output(self.path):
                self.path.unlink(missing_ok=True)

    def _read(self, head: str) -> int:
        """Read what is done; returns the number of bytes that are whole lines of this work."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        if not lines or lines[0] != f"{head}\n".encode():
            return 0
        size = len(lines[0])
        for line in lines[1:]:
            if not line.endswith(b"\n"):
                break
            try:
                key, value = json.loads(line)
            except (ValueError, TypeError):
                break
            self.done[key] = value
            size += len(line)
        return size

    def _append(self, line: str) -> None:
        if self._file is None:
            return
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
