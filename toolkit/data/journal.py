"""Resuming long work: finished pieces are appended to a file, and found again after an interruption."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar, TextIO

from ...adapters.artifact.held import begins_anew, ends_with_output
from ...adapters.artifact.kept import Identity, digests, goes_on
from ...adapters.errors import UsageError
from ..distributed.output import of_first


class Journal:
    """Finished pieces of one piece of work, by key.

    The first line says which work it is (model, records, settings); a journal of other work is never mixed in. A last
    line cut off by a crash is dropped.

    Args:
        identity: what the pieces depend on, by the words in which a user is told of it.

    Raises:
        UsageError: it holds pieces of other work; see :func:`~safetykit.adapters.artifact.kept.goes_on`.

    Attributes:
        done: what earlier runs and this one have finished.
        unfinished: the journal that was opened last and not finished.
    """

    unfinished: ClassVar[Journal | None] = None

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None
        self.done: dict[str, Any] = of_first(lambda: self._open(identity))  # of several processes, all know it
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

    def _open(self, identity: Identity) -> dict[str, Any]:
        head, done, size = _read(self.path)
        if not done or not goes_on(self.path, head, identity, _told(done)):
            done, size = {}, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  stays open until close()
        self._file.truncate(size)  # a cut-off line must not run into the next one; what is whole stays on the disk
        if not size:
            self._append(json.dumps(digests(identity)))
        return done

    def _append(self, line: str) -> None:
        if self._file is None:
            return
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def require_journal(path: Path, identity: Identity) -> None:
    """Refuse a journal of other work before anything is loaded.

    Args:
        identity: the part of it that is already known.

    Raises:
        UsageError: as :class:`Journal`.
    """

    def refuse() -> None:
        head, done, _ = _read(path)
        if done and not begins_anew(path):
            goes_on(path, head, identity, _told(done))

    of_first(refuse)


def require_no_journal(path: Path, whose: str) -> None:
    """Refuse to end the journal of another command, which this one does not use, unless it may begin anew.

    Args:
        whose: what would go on from it.

    Raises:
        UsageError: there are finished pieces.
    """

    def refuse() -> None:
        _, done, _ = _read(path)
        if done and not begins_anew(path):
            raise UsageError(
                f"{_told(done)} of an interrupted command are kept in {path}.",
                f"To go on give {whose}; pass --overwrite to begin anew, or choose another output.",
            )

    of_first(refuse)


def _told(done: dict[str, Any]) -> str:
    return f"{len(done)} finished parts" if len(done) > 1 else "Finished parts"


def _read(path: Path) -> tuple[Any, dict[str, Any], int]:
    """The first line, the pieces, and the number of bytes that are whole lines."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    head, done, size = None, dict[str, Any](), 0
    for line in lines:
        if not line.endswith(b"\n"):
            break
        try:
            if size:
                key, value = json.loads(line)
                done[key] = value
            else:
                head = json.loads(line)
        except (ValueError, TypeError):
            if size:
                break
        size += len(line)
    return head, done, size
