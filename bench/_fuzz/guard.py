"""What a load must not do, seen by an audit hook: run a program, open a connection, unpickle, run its code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

_NEVER = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn", "ctypes.dlopen")
_NETWORK = ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")
_MAKERS = (
    "dataclasses.py",
    "collections/__init__.py",
    "jinja2/environment.py",
    "enum.py",
    "typing.py",
    "_make.py",
)


class Guard:
    """Notes forbidden events while it watches.

    Attributes:
        found: what was seen, as text.
    """

    def __init__(self, folder: Path, allowed: tuple[str, ...] = ()) -> None:
        """Watch loads from ``folder``; programs whose arguments name one of ``allowed`` may run."""
        self.folder, self.allowed, self.found, self.watching = str(folder), allowed, [], False
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event in _NEVER or event in _NETWORK or event == "pickle.find_class":
            told = f"{event} {arguments!r}"[:200]
            if not any(word in told for word in self.allowed):
                self.found.append(told)
        elif event == "exec":
            file = getattr(arguments[0], "co_filename", "")
            if file.startswith(self.folder) or (file.startswith("<") and not self._made_by_a_library()):
                self.found.append(f"exec {file}")
        elif event == "import" and self.folder in str(arguments[1:3]):
            self.found.append(f"import {arguments[0]} from the folder")

    @staticmethod
    def _made_by_a_library() -> bool:
        frame = sys._getframe(2)
        return (
            "importlib" in frame.f_code.co_filename
            or frame.f_code.co_filename.startswith("<frozen")
            or any(frame.f_code.co_filename.endswith(one) for one in _MAKERS)
        )
