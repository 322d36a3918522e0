"""Memory of a process that serves for a long time: what is resident, and what of it is in use."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 2**20


class Memory(NamedTuple):
    """A look at the memory of this process.

    Attributes:
        second: since the work began.
        resident: MiB, once free pages were given back.
        used: MiB that the C library has given out and not got back, in pieces below its threshold for a mapping of
            their own; None where the library does not say.
        blocks: MiB of larger pieces, each a mapping of its own. ONNX Runtime's arena is one or few; its pages become
            resident when a batch first reaches them.
    """

    second: float
    resident: float
    used: float | None
    blocks: float | None


def looked(second: float) -> Memory:
    """Give back free pages, and look."""
    give_back()
    used = in_use()
    return Memory(round(second, 1), round(resident(), 2), *(used or (None, None)))


def resident() -> float:
    """Resident memory of this process, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / _MIB


class _Mallinfo(ctypes.Structure):
    """malloc.h, ``struct mallinfo2`` of glibc 2.33 and later."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def in_use() -> tuple[float, float] | None:
    """MiB that malloc has given out: in its heaps, and in mappings of their own; None where nobody tells."""
    try:
        look = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        return None
    look.restype = _Mallinfo
    found = look()
    return round(found.uordblks / _MIB, 2), round(found.hblkhd / _MIB, 2)


def give_back() -> None:
    """Have glibc return the pages that are free; elsewhere nothing."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def slope(samples: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Memory by the minute, and the slope after the first third in MiB an hour with its 95 % interval.

    Neighbouring samples are alike, so means of minutes are fitted; with fewer than four of them nothing is said.

    Args:
        samples: seconds and MiB.
    """
    minutes: dict[int, list[float]] = {}
    for second, value in samples:
        minutes.setdefault(int(second // 60), []).append(value)
    means = [round(float(np.mean(values)), 1) for _, values in sorted(minutes.items())]
    late = means[len(means) // 3 :]
    if len(late) < 4:
        return {"by_minute": means, "slope": None}
    fit = stats.linregress(np.arange(len(late)) / 60, late)
    value = float(np.nan_to_num(fit.slope))  # a constant has none
    half = float(stats.t.ppf(0.975, len(late) - 2)) * float(np.nan_to_num(fit.stderr))
    return {"by_minute": means, "slope": [round(one, 2) for one in (value, value - half, value + half)]}


def memories(looks: Sequence[Memory]) -> dict[str, dict[str, Any]]:
    """The slope of each kind of memory that was seen; ``resident`` always."""
    found = {"resident": slope([(one.second, one.resident) for one in looks])}
    if all(one.used is not None for one in looks):
        found["used"] = slope([(one.second, one.used) for one in looks if one.used is not None])
        found["blocks"] = slope([(one.second, one.blocks) for one in looks if one.blocks is not None])
    return found
