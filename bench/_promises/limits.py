"""Limits before work: what is too large is refused by name before memory is spent on it."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from safetykit.adapters.errors import SafetykitError

from .attempts import CASES
from .row import Figure, Place, Row, Tally

MEMORY, SECONDS = 512, 15  # MiB of the whole process; seconds of processor of the attempt, imports aside
_WAIT = 180  # seconds after which an attempt is ended, imports included


def limits(place: Place) -> Figure:
    """Every case, each in a process."""
    tally, counts = Tally(), dict[str, Any]()
    for name in list(CASES)[:: place.some(1, 4)]:
        with place.scratch("limit") as work:
            folder = work / "folder"
            if of := CASES[name].of:
                shutil.copytree(getattr(place, of), folder)
            else:
                folder.mkdir()
            with contextlib.suppress(SafetykitError):  # sealing again may be refused by what was made too large
                CASES[name].prepare(folder)
            found = _alone(name, folder)
            found["error"] = (found.get("error") or "accepted").replace(str(folder), folder.name)
        counts[name] = found
        spent = f"{found.get('mb', 0):.0f} MiB, {found.get('seconds', _WAIT):.1f} s"
        good = found.get("typed") and found["mb"] < MEMORY and found["seconds"] < SECONDS
        tally.true(f"{name}: {found['error']}, {spent}", bool(good))
    largest = max((found.get("mb", 0) for found in counts.values()), default=0)
    return tally.figure(
        f"refused with a typed error, under {MEMORY} MiB and {SECONDS} s of processor; most: {largest:,.0f} MiB", counts
    )


def _alone(name: str, folder: Path) -> dict[str, Any]:
    """What the process says of a case; what there is if it was ended."""
    words = [sys.executable, "-m", "safetykit.bench._promises.attempts", name, str(folder)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_WAIT)
    except subprocess.TimeoutExpired:
        return {"error": f"still at work after {_WAIT} s"}
    try:
        return dict(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return {"error": f"ended with {done.returncode}: {done.stderr.strip()[-200:]}"}


ROWS = (
    Row(
        "limits",
        "limits before work",
        f"{len(CASES)} things too large: typed errors, each under {MEMORY} MiB and {SECONDS} s of processor",
        limits,
    ),
)
