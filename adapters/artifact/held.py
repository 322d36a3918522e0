"""One writer of an output at a time, in a hidden folder beside it, which the next one clears if that writer was killed.

``.NAME.writing`` holds the lock, a note of whose it is, the output that is being made (``new``) and, while it takes the
place of a former one on systems that cannot swap two paths, that one (``old``). The system frees the lock when its
process ends, however it ends; so a lock that can be had is nobody's, and all beside it was left behind.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from filelock import FileLock, Timeout

from ..errors import LeftBehind, UsageError
from .exchange import exchanged
from .files import flush
from .names import located
from .system import typed

_LOCK, _OWNER = "lock", "owner.json"
_TRIES = 100  # how often a writer that ends may take the folder away before we have the lock in it


@dataclass(frozen=True)
class Held:
    """An output that this thread holds.

    Attributes:
        target: where it will be; its parent is there.
        spent: what an interrupted run would go on from, and what ends when the output appears.
        anew: whether what is kept of other work may be given up for it.
    """

    target: Path
    spent: list[Path] = field(default_factory=list)
    anew: bool = False

    @property
    def folder(self) -> Path:
        """Everything that is there only while the output is made."""
        return beside(self.target, "writing")

    @property
    def new(self) -> Path:
        """The output while it is made."""
        return self.folder / "new"

    @property
    def old(self) -> Path:
        """The former output, between two renames."""
        return self.folder / "old"

    def commit(self) -> None:
        """Let ``new`` become the output; what it replaces and what is spent move to where :meth:`clear` removes it."""
        moved = {path: self.folder / f"spent-{at}" for at, path in enumerate(self.spent) if path.exists()}
        appeared = False
        try:
            for path, place in moved.items():
                os.replace(path, place)
            self._rename()
            appeared = True
        finally:
            for path, place in moved.items():
                if not appeared and place.exists():
                    os.replace(place, path)
        flush(self.target.parent)

    def _rename(self) -> None:
        if not self.target.is_dir():
            os.replace(self.new, self.target)
        elif not exchanged(self.new, self.target):
            os.replace(self.target, self.old)
            os.replace(self.new, self.target)

    def clear(self) -> bool:
        """Remove all but the lock and its owner; True if a former output was put back."""
        back = os.path.lexists(self.old) and not os.path.lexists(self.target)
        if back:
            os.replace(self.old, self.target)
        for path in self.folder.iterdir():
            if path.name not in (_LOCK, _OWNER):
                remove(path)
        return back


_unfinished: list[Path] = []

# Outputs by their hidden folder. Threads begin without them, and so wait for no lock of their own process.
_HELD: ContextVar[Mapping[Path, Held]] = ContextVar("held", default=MappingProxyType({}))


def unfinished() -> list[Path]:
    """What the last output that did not appear can be gone on from."""
    return list(_unfinished)


@contextmanager
def goes_on_from(path: Path) -> Iterator[None]:
    """Say of a block that does not end well that what it has finished lies in ``path``."""
    try:
        yield
    except BaseException:
        _unfinished[:] = [path]
        raise


def ends_with_output(path: Path) -> bool:
    """Whether a path is spent by an output that this thread holds, and so goes when that appears."""
    return any(path in output.spent for output in _HELD.get().values())


def begins_anew(path: Path) -> bool:
    """Whether a path is spent by an output that this thread holds, and that may be begun anew."""
    return any(output.anew and path in output.spent for output in _HELD.get().values())


def beside(target: Path, suffix: str) -> Path:
    """The hidden path next to an output for something that belongs to it."""
    return target.with_name(f".{target.name}.{suffix}")


@contextmanager
def held(target: Path, *, spent: Iterable[Path] = (), wait: bool = False, anew: bool = False) -> Iterator[Held]:
    """Hold an output until the block ends; what a killed process has left of it is cleared first, with a warning.

    A thread that holds an output may hold it again.

    Args:
        spent: as ``anew``, see :class:`Held`.
        wait: for another process that holds it, in the place of an error.

    Raises:
        UsageError: another process writes it, or nothing can be called so or written there.
    """
    target = located(target)
    mine, folder = _HELD.get(), beside(target, "writing")
    if folder in mine:
        mine[folder].spent.extend(path for path in spent if path not in mine[folder].spent)
        yield mine[folder]
        return
    found = Held(target, list(spent), anew)
    _unfinished.clear()
    with _parents(target), _locked(found, wait=wait):
        token = _HELD.set({**mine, folder: found})
        try:
            yield found
        except BaseException:
            _unfinished.extend(found.spent)
            raise
        finally:
            _HELD.reset(token)


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Make the folders above an output; those where nothing came to be are removed again."""
    missing = [path for path in target.parents if not path.exists()]
    try:
        _make_parent(target)
        yield
    finally:
        for path in missing:
            with suppress(OSError):
                path.rmdir()


def _make_parent(target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        there = next(path for path in target.parents if path.exists() and not path.is_dir())
        raise UsageError(f"{there} is a file, not a folder.", "Choose another place for the output.") from None
    except OSError as error:
        there = next(path for path in target.parents if path.exists())
        raise _unwritable(there, error) from None


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"Nothing can be written in {folder}: {error.strerror}.", "Choose another place.")


@contextmanager
def _locked(output: Held, *, wait: bool) -> Iterator[None]:
    folder = output.folder
    lock = FileLock(folder / _LOCK, thread_local=False)
    try:
        _acquire(lock, output, wait=wait)
        with typed(output.target):
            _take_over(output)
            (folder / _OWNER).write_text(json.dumps(_me()))
            yield
    except KeyboardInterrupt:  # before we had the lock in the folder that we had made, perhaps
        if folder.is_dir() and not lock.is_locked:
            with suppress(Timeout, OSError):
                lock.acquire(timeout=0)
        raise
    finally:
        if lock.is_locked:
            try:
                _leave(output, lock)
            except KeyboardInterrupt:  # no reason to leave anything behind
                if (folder / _LOCK).exists():
                    _leave(output, lock)
                with suppress(OSError):
                    folder.rmdir()
                raise
            finally:
                lock.release()


def _acquire(lock: FileLock, output: Held, *, wait: bool) -> None:
    folder = output.folder
    for left in reversed(range(_TRIES)):
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except FileNotFoundError as error:  # its parent, by a writer that just ended
            if not left:  # or where nothing can be made, as in /proc
                raise _unwritable(folder.parent, error) from None
            _make_parent(output.target)
            continue
        except OSError as error:
            raise _unwritable(folder.parent, error) from None
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout:
            if (folder / _LOCK).exists():
                raise _busy(output) from None
        except FileNotFoundError:  # removed by a writer that just ended
            pass
        except OSError as error:
            raise _unwritable(folder, error) from None
        else:
            return
    raise _busy(output)


def _leave(output: Held, lock: FileLock) -> None:
    """Remove the folder with all in it while nobody else can hold the lock; Windows must let go of that first."""
    output.clear()
    (output.folder / _OWNER).unlink(missing_ok=True)
    if os.name == "nt":
        lock.release()
    with suppress(OSError):
        (output.folder / _LOCK).unlink()
        output.folder.rmdir()


def _take_over(output: Held) -> None:
    """Clear what a killed process has left."""
    owner, size = _owner(output.folder), _size(output.folder)
    back = output.clear()
    if not owner:
        return
    who = f"process {owner['process']} on {owner['host']}, which was stopped at it"
    if back:
        warnings.warn(f"{output.target} was put back: {who} while it was replaced.", LeftBehind, stacklevel=2)
    else:
        told = f"{size / 2**20:.1f} MiB that were left of {output.target} by {who}, were removed."
        warnings.warn(told, LeftBehind, stacklevel=2)


def _me() -> dict[str, Any]:
    return {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}


def _owner(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _OWNER).read_bytes())
        return {"process": int(found["process"]), "host": str(found["host"]), "since": float(found["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _busy(output: Held) -> UsageError:
    owner, who = _owner(output.folder), "another process"
    if owner:
        age = max(0.0, time.time() - owner["since"])
        lasted = f"{age:.0f} seconds" if age < 120 else f"{age / 60:.0f} minutes"
        who = f"process {owner['process']} on {owner['host']}, for {lasted} now"
    return UsageError(f"{output.target} is being written by {who}.", "Wait until it is done, or choose another output.")


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds; what the system keeps is left for the next time."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
