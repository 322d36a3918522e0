"""Signals that ask a command to end: the first lets it clean up, as Ctrl-C does; one more ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from .exit_codes import of_signal

# Where the system has them: a terminal that is closed, and a scheduler, a container or a service that is stopped.
_ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SOON = 0.05  # seconds after which a wish that Python has dropped is heard again
_ONE_WISH = 1.0  # seconds in which several are one wish: a terminal sends SIGHUP, and its shell another


class Asked:
    """Which signal has asked the command to end.

    Attributes:
        number: of the first one; 0 before.
    """

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt at the first, whichever it is; later ones are :func:`_watch`'s.

        Raises:
            KeyboardInterrupt: see above.
        """
        if not self.number:
            self.number = number
            raise KeyboardInterrupt


asked = Asked()


@contextmanager
def heard() -> Iterator[None]:
    """Hear them until the block ends; those that are ignored from outside, as under ``nohup``, stay so."""
    global asked
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():  # where Python lets nobody hear them
        yield
        return
    before = {number: signal.getsignal(number) for number in _ASKING}
    with _kept(asked), _watched() if os.name == "posix" else nullcontext():
        for number, handler in before.items():
            if handler not in (signal.SIG_IGN, None):
                signal.signal(number, asked)
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)


@contextmanager
def _kept(asked: Asked) -> Iterator[None]:
    """Send a signal once more whose KeyboardInterrupt met code in which Python drops errors, such as a destructor."""
    before, ended = sys.unraisablehook, threading.Event()

    def again(number: int) -> None:
        if not ended.wait(_SOON):
            asked.number = 0
            os.kill(os.getpid(), number)

    def dropped(error: sys.UnraisableHookArgs) -> None:
        if isinstance(error.exc_value, KeyboardInterrupt) and asked.number:
            threading.Thread(target=again, args=(asked.number,), daemon=True).start()
        else:
            before(error)

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        ended.set()
        sys.unraisablehook = before


@contextmanager
def _watched() -> Iterator[None]:
    """Hear of signals in a thread, too, through a pipe that Python fills before any handler can run."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)


def _watch(signals: int) -> None:
    """End the process at a second wish: in a thread, as the main one may be long in a library that hears nothing."""
    first = 0.0
    while number := os.read(signals, 1):
        now = time.monotonic()
        if number[0] in _ASKING and not first:
            first = now
        elif number[0] in _ASKING and now - first > _ONE_WISH:
            os._exit(of_signal(number[0]))
    os.close(signals)
