"""What the system says when it will not write, as one typed error: disk full or read-only, quota, permission."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputFailed, SafetykitError

# Only writing meets these; what reads may also lack permission, or meet a bad disk.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WRITING = (*_FULL, errno.EROFS, errno.ETXTBSY, errno.EBUSY, errno.ENOTEMPTY)
_DENIED = (errno.EACCES, errno.EPERM, errno.EIO, errno.EXDEV, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)
_CUT = re.compile(r"\d+ requested and \d+ written")  # how NumPy says that not all went into a file; it tells no number
_IN_TEXT = re.compile(r"\(os error (\d+)\)")  # how Rust, and so safetensors, says it


def write_fault(error: BaseException) -> int | None:
    """The system's number of a failure to write that ``error`` is, or that it was raised for; None if it is none."""
    if isinstance(error, OSError) and error.errno in _WRITING:
        return error.errno
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        if (number := _full(found)) is not None:
            return number
        seen.append(found)
        found = found.__cause__ or found.__context__
    return None


def _full(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _FULL else None
    if isinstance(error, OSError) and _CUT.search(str(error)):
        return errno.ENOSPC
    if said := _IN_TEXT.search(str(error)):
        return int(said[1]) if int(said[1]) in _FULL else None
    full = any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))  # as C++ libraries say it
    return errno.ENOSPC if full else None


@contextmanager
def typed(target: Path) -> Iterator[None]:
    """Raise what the system refuses while ``target`` is written as a typed error.

    Raises:
        OutputFailed: naming the output, and what the system said.
    """
    try:
        yield
    except SafetykitError:
        raise
    except Exception as error:
        number = write_fault(error)
        if (
            number is None
            and isinstance(error, OSError)
            and error.errno in _DENIED
            and _is_near(target, error.filename)
        ):
            number = error.errno
        if number is None:
            raise
        raise failed(number, str(target)) from error


def failed(number: int, what: str) -> OutputFailed:
    """The error for the system's ``number`` met while ``what`` was written."""
    then = "Choose another place for it."
    if number in _FULL:
        then = (
            "Make room on that disk, and where temporary files go (TMPDIR), or choose another place; then run it again."
        )
    return OutputFailed(f"{what} could not be written: {os.strerror(number)}.", then)


def _is_near(target: Path, name: object) -> bool:
    """Whether a path lies in the folder of ``target``."""
    return isinstance(name, str | bytes) and Path(os.path.abspath(os.fsdecode(name))).is_relative_to(target.parent)
