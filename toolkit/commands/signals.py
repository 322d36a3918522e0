"""Signals that ask a command to end: the first lets it clean up, as Ctrl-C does; one more ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Where the system has them: a terminal that is closed, and a scheduler, a container or a service that is stopped.
_ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_ONE_WISH = 1.0  # seconds in which several are one wish: a terminal sends SIGHUP, and its shell another


class Asked:
    """Which signal has asked the command to end.

    Attributes:
        number: of the first one; 0 before.
    """

    def __init__(self) -> None:
        self.number = 0
        self._when = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt at the first; at a later one, do what the system does without us.

        Raises:
            KeyboardInterrupt: whatever the signal.
        """
        if not self.number:
            self.number, self._when = number, time.monotonic()
            raise KeyboardInterrupt
        if time.monotonic() - self._when > _ONE_WISH:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


asked = Asked()


@contextmanager
def heard() -> Iterator[None]:
    """Hear them until the block ends; those that are ignored from outside, as under ``nohup``, stay so."""
    global asked
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ASKING}
    for number, handler in before.items():
        if handler not in (signal.SIG_IGN, None):
            signal.signal(number, asked)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:
                signal.signal(number, handler)
