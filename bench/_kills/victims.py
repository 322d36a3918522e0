"""A command in a process that is forked from one in which all libraries are loaded: left alone, or killed at a moment.

A moment is a share of the processor time that the command takes when it is left alone, which other work on the machine
does not shift; or the N-th time that the command touches a file near its output, which is heard by an audit hook.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetykit.cli import main as command_line

WAIT = 600.0  # seconds after which a command counts as hanging
GONE = 10.0  # seconds in which the processes that a killed one had started must end
_POLL = 0.002
_TOUCHING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "open")
_SWAPPING = "ctypes.dlsym"  # by which two paths are swapped


@dataclass(frozen=True)
class Moment:
    """When a process gets which signal.

    Attributes:
        sent: the signal.
        group: whether all processes of its group get it, as from a terminal or a container; else the process alone.
        seconds: of processor time that it has taken by then.
        event: or how often it has touched files near its output.
    """

    sent: signal.Signals
    group: bool = False
    seconds: float = 0.0
    event: int | None = None


class _Ear:
    """Counts how often files in a folder are touched, and sends the signal when it is time."""

    def __init__(self, folder: Path, moment: Moment | None = None) -> None:
        self._folder, self._moment, self.count = str(folder), moment, 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        if event == _SWAPPING:
            near = str(given[1]).startswith("rename")
        else:
            near = event in _TOUCHING and any(self._folder in os.fsdecode(one) for one in given if _is_path(one))
        if near:
            self.count += 1
            if self._moment and self.count == self._moment.event:
                _send(os.getpid(), self._moment)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, bytes, os.PathLike))


def _send(process: int, moment: Moment) -> None:
    (os.killpg if moment.group else os.kill)(process, moment.sent)


def forked(
    words: Sequence[str], log: Path, *, near: Path | None = None, moment: Moment | None = None, note: Path | None = None
) -> int:
    """Start a command in a child, which leads a group of processes of its own; returns its number.

    Args:
        near: folder in which touched files are counted.
        moment: of those, when the signal comes.
        note: file for what is known at the end: ``touched``, and the ``modules`` that are loaded.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        with suppress(OSError):  # whoever is first
            os.setpgid(child, child)
        return child
    code = 1
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        for one, handler in {
            signal.SIGINT: signal.default_int_handler,
            signal.SIGTERM: signal.SIG_DFL,
            signal.SIGHUP: signal.SIG_DFL,
        }.items():
            signal.signal(one, handler)
        there = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(there, 1)
        os.dup2(there, 2)
        ear = _Ear(near, moment) if near else None
        try:
            command_line(list(words))
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if note:
            note.write_text(json.dumps({"touched": ear.count if ear else 0, "modules": sorted(sys.modules)}))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def spent(process: int) -> float:
    """Seconds of processor time that a process has taken; infinity when it has ended."""
    try:
        return time.clock_gettime((~process << 3) | 2)  # the clock of another process, as Linux numbers it
    except OSError:
        return float("inf")


def _ended(child: int) -> bool:
    """Whether a child has ended, and still waits to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def waited(child: int) -> tuple[int, float]:
    """How a child ended, by its exit code or the negative number of the signal; and its processor time, seen last."""
    until, taken = time.monotonic() + WAIT, 0.0
    while True:
        seen = spent(child)
        taken = max(taken, seen) if seen < float("inf") else taken
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status), taken
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(_POLL)


def finished(words: Sequence[str], log: Path, *, near: Path | None = None, note: Path | None = None) -> int:
    """The exit code of a command that is left alone."""
    return waited(forked(words, log, near=near, note=note))[0]


def killed(words: Sequence[str], log: Path, near: Path, moment: Moment) -> dict[str, Any]:
    """How a command ended that gets a signal: its code, the seconds it took, and the processes it left behind."""
    child = forked(words, log, near=near if moment.event is not None else None, moment=moment)
    if moment.event is None:
        until = time.monotonic() + WAIT
        while not _ended(child) and spent(child) < moment.seconds and time.monotonic() < until:
            time.sleep(_POLL)
        _send(child, moment)  # there is someone to send to until we have waited for it
    began = time.monotonic()
    code, _ = waited(child)
    took = time.monotonic() - began
    until = time.monotonic() + GONE
    while (left := members(child)) and time.monotonic() < until:
        time.sleep(0.02)
    for process in left:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)
    return {"code": code, "ended_in": round(took, 3) if moment.event is None else None, "processes": len(left)}


def members(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, leader = path.read_text().rpartition(")")[2].split()[:3]
            if int(leader) == group and state not in "ZX":
                found.append(int(path.parent.name))
    return found


def note_of(note: Path) -> dict[str, Any]:
    """What a command has noted, see :func:`forked`."""
    found: dict[str, Any] = json.loads(note.read_text())
    return found
