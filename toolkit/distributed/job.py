"""One process of a job: silent unless it is the first, and never left waiting for one that is gone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from ...adapters.errors import ProcessLost, UsageError
from .world import working_in

C = TypeVar("C", bound=Callable[..., Any])

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what every launcher of torch.distributed sets


def launched() -> int:
    """How many processes a launcher has started; 1 without one."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _NEEDED) else 1


def local_rank() -> int:
    """Which process of this machine this is, for the choice of a device."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() > 1 else 0


class Job:
    """This process's part in a job, from the start of the command line to its end."""

    def __init__(self) -> None:
        self.first = launched() == 1 or os.environ["RANK"] == "0"
        self._processes: Any = None
        self._kept: list[tuple[int, int]] = []  # streams that are silent, and where they led

    def hush(self) -> None:
        """Print nothing from now on, unless this is the first process, or ``SAFETYKIT_DEBUG`` is set."""
        if self.first or os.environ.get("SAFETYKIT_DEBUG"):
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            self._kept.append((stream.fileno(), os.dup(stream.fileno())))
            os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Deal out to the job's processes until the block ends, and leave it together."""
        if launched() == 1:
            yield
            return
        from .processes import Processes

        self._processes = Processes()
        signal.signal(signal.SIGTERM, _stopped)  # only now: until the processes have met, nothing here could hear it
        with working_in(self._processes):
            yield
            self._processes.gather(None).result()
        self._processes.close()

    def speaks(self) -> bool:
        """Whether this process is to say what went wrong; it can then be heard.

        Of failures before the processes know each other, which all of them meet, the first process speaks.
        """
        speaks = bool(self.first if self._processes is None else self._processes.speaks())
        if speaks:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            while self._kept:
                number, kept = self._kept.pop()
                os.dup2(kept, number)
                os.close(kept)
        return speaks

    def leave(self, code: int) -> NoReturn:
        """End the process; what others were to be told is not waited for."""
        if self._processes is None or code == 0:
            sys.exit(code)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_job = Job()


def start() -> Job:
    """Begin anew; the one that runs is :func:`current`."""
    global _job
    _job = Job()
    _job.hush()
    return _job


def current() -> Job:
    """The part that this process has."""
    return _job


def sharing(command: C) -> C:
    """A command that shares its work among the processes of a job; others refuse to be run by several."""
    command.shares_work = True  # type: ignore[attr-defined]
    return command


def require_one(command: str) -> None:
    """Refuse a command that cannot share its work.

    Raises:
        UsageError: several processes run it.
    """
    if (count := launched()) > 1:
        raise UsageError(
            f"`{command}` does not share its work, and {count} processes were started for it.",
            "Run it on its own, without the launcher.",
        )


def _stopped(number: int, frame: Any) -> None:
    raise ProcessLost("This job was stopped, as a launcher does when one of its processes is gone.")
