"""One line of JSON on stderr for everything that happens, without what users say unless that was asked for."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import Any, TextIO


class Log:
    """Lines of JSON.

    Args:
        stream: where they go; stderr by default.
        prompts: whether fields of what users and the model say are kept.
    """

    SAID = frozenset(("prompt", "answer"))

    def __init__(self, stream: TextIO | None = None, *, prompts: bool = False) -> None:
        self._stream, self._prompts, self._turn = stream, prompts, threading.Lock()

    def __call__(self, event: str, **fields: Any) -> None:
        """Write a line; fields that are None are left out."""
        kept = {
            name: one for name, one in fields.items() if one is not None and (self._prompts or name not in self.SAID)
        }
        line = json.dumps({"time": datetime.now(UTC).isoformat(), "event": event, **kept}, default=str)
        with self._turn:
            print(line, file=self._stream or sys.stderr, flush=True)


class _Lines(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log("said", by=record.name, reason=record.getMessage())


def libraries_into(log: Log) -> None:
    """Have what uvicorn reports, and warnings of libraries, be lines of the log."""
    logging.captureWarnings(True)
    for name in ("uvicorn.error", "py.warnings"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [_Lines(log)], False
