"""Two paths that swap what they name in one step, where the system can: nobody ever finds neither."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

_HERE = -100  # AT_FDCWD of Linux: relative paths are relative to the current folder
_SWAP = 2  # RENAME_EXCHANGE of Linux's renameat2, and RENAME_SWAP of macOS' renamex_np
_UNABLE = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


def _call() -> Callable[[bytes, bytes], int] | None:
    """The system's call, by ctypes: Python's library has none."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "linux":
            on_linux = library.renameat2
            return lambda first, second: int(on_linux(_HERE, first, _HERE, second, _SWAP))
        on_macos = library.renamex_np
    except (AttributeError, OSError, TypeError):  # not there: an old system, or Windows
        return None
    return lambda first, second: int(on_macos(first, second, _SWAP))


def exchanged(first: Path, second: Path) -> bool:
    """Swap two paths of one file system; False where the system or the file system cannot.

    Raises:
        OSError: it can, and failed.
    """
    call = _call()
    if call is None:
        return False
    if call(os.fsencode(first), os.fsencode(second)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(first), None, str(second))
