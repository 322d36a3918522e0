"""Where an output may lie, and names that every file system can hold, so that it can be copied anywhere."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ..errors import UsageError

# https://learn.microsoft.com/en-us/windows/win32/fileio/naming-a-file: names of devices, with any extension.
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{at}" for port in ("com", "lpt") for at in "0123456789¹²³"
}
V = TypeVar("V")
LONGEST = 255  # bytes of a name, on nearly all file systems
_SPARE = 32  # of them for what stands beside an output while it is made


def fault_of(name: str) -> str | None:
    """Why a file or folder should not be called ``name``, as the end of a sentence; None if it may."""
    if not name or name in (".", ".."):
        return "names no file"
    if name.split(".")[0].rstrip(" ").casefold() in _DEVICES:
        return "is the name of a device on Windows"
    if name[-1] in " .":
        return "ends with a dot or a space, which Windows drops"
    if any(ord(letter) < 32 or letter == "\x7f" for letter in name):
        return "holds a control character"
    if len(os.fsencode(name)) > LONGEST - _SPARE:
        return f"is longer than {LONGEST - _SPARE} bytes"
    return None


def twin_of(name: str, others: Iterable[str]) -> str | None:
    """One of ``others`` that differs from ``name`` in case only: many file systems can hold just one of the two."""
    return next((other for other in others if other != name and other.casefold() == name.casefold()), None)


def portable(name: str) -> str:
    """``name``, of a file in a folder, with ``/`` between folders.

    Raises:
        ValueError: some file system cannot hold it.
    """
    for part in name.split("/"):
        if (fault := fault_of(part)) is not None:
            raise ValueError(f"the name {part!r} {fault}")
    return name


def apart(named: dict[str, V]) -> dict[str, V]:
    """``named``, by names of files.

    Raises:
        ValueError: two of them are one file on systems that do not tell A from a.
    """
    if len({name.casefold() for name in named}) < len(named):
        twins = next((name, twin) for name in named if (twin := twin_of(name, named)))
        raise ValueError(f"{twins[0]} and {twins[1]} are one file where A is a")
    return named


def located(target: Path) -> Path:
    """The absolute path of an output, links followed.

    Raises:
        UsageError: nothing can be written under this name.
    """
    try:
        found = Path(target).resolve()
        missing = [path for path in (found, *found.parents) if not os.path.lexists(path)]
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a zero byte, too long a name
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{str(target)!r} cannot be the path of an output: {said}.", "Choose another one.") from None
    if found.parent == found:
        raise UsageError(f"{target} is the root of the file system.", "Choose a folder in it.")
    if os.path.ismount(found):
        raise UsageError(f"{target} is a mount point, which cannot be replaced.", "Choose a folder in it.")
    if _is_around(found):
        raise UsageError(f"{target} is the folder you are in, or holds it.", "Choose another output folder.")
    for path in missing:
        if (fault := fault_of(path.name)) is not None:
            raise UsageError(f"{path} cannot be written: the name {path.name!r} {fault}.", "Choose another name.")
    if missing:
        with suppress(OSError):
            last = missing[-1]
            if (twin := twin_of(last.name, os.listdir(last.parent))) is not None:
                raise UsageError(
                    f"{last} and {last.with_name(twin)} are one file on systems that do not tell A from a.",
                    "Choose another name.",
                )
    return found


def _is_around(folder: Path) -> bool:
    """Whether the current folder is ``folder`` or lies in it."""
    try:
        return Path.cwd().is_relative_to(folder)
    except OSError:  # it was removed
        return False
