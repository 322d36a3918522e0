"""The server of HTTP: what it does at a signal, and with connections that do not say what they want."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .service import Service

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
FLUSH = 5  # seconds in which the last answers are sent


class DrainingServer(uvicorn.Server):
    """At the first signal it drains and goes on listening, to say so; what is not answered in time fails; then it ends.

    A second signal ends it at once. Its end at a signal is a success: the signal is not raised once more afterwards.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service, self._signalled = service, False

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signalled:
            self.force_exit = self.should_exit = True
            return
        self._signalled = True
        threading.Thread(target=self._drain, name="safetykit-drain", daemon=True).start()

    def _drain(self) -> None:
        scheduler = self._service.scheduler
        if not scheduler.drain(self._service.options.drain):
            scheduler.close()  # which tells every row that is left
        self.should_exit = True


class _InTime(H11Protocol):
    """Closes a connection on which no whole request line with its headers comes within ``seconds``."""

    seconds: float
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(self.seconds, self.transport.close)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def protocol(seconds: float) -> Any:
    """HTTP/1.1 by h11, whose headers have to come within so many seconds."""
    return type("InTime", (_InTime,), {"seconds": seconds})
