"""Resuming long work: finished pieces are appended to a file, and found again after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, ClassVar, TextIO

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
        first = is_first()  # of several processes, which all know what is done
        lines = self.path.read_text().splitlines() if first and self.path.is_file() else []
        if lines and lines[0] == head:
            for line in lines[1:]:
                try:
                    key, value = json.loads(line)
                except (ValueError, TypeError):
                    break
                self.done[key] = value
        self.done = from_first(self.done)
        if first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Written anew, so that a cut-off line does not run into the next one.
            kept = [head, *(json.dumps(item) for item in self.done.items())]
            self._file = open(self.path, "w", encoding="utf-8")  # noqa: SIM115  stays open until finish()
            self._append("\n".join(kept))
        Journal.unfinished = self

    def add(self, key: str, value: Any) -> None:
        """Note that ``key`` is finished; it survives a crash from here on."""
        self.done[key] = value
        self._append(json.dumps((key, value)))

    def finish(self) -> None:
        """The work is complete and stored elsewhere: remove the journal."""
        if self._file is not None:
            self._file.close()
            self.path.unlink(missing_ok=True)
        Journal.unfinished = None

    def _append(self, line: str) -> None:
        if self._file is None:
            return
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
