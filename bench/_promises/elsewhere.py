"""Rows that are measured by benchmarks and tests of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from .row import Figure, Place, Row, Tally

ROOT = Path(__file__).parents[2]
BAD = 20  # seeded bad exports, at least
_PARITY = "tests/unit/export/test_parity.py"


def tests(place: Place, name: str, words: Sequence[str]) -> Tally:
    """Run tests in a process of its own; each that passes holds, each that does not is named."""
    report = place.folder / f"{name}.xml"
    report.unlink(missing_ok=True)
    typed = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", f"--junitxml={report}", *words]
    done = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True)
    if not report.is_file():
        raise RuntimeError(f"pytest ended with {done.returncode}: {done.stdout.strip()[-300:]}")
    tally = Tally()
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("skipped") is None:
            tally.true(str(case.get("name")), case.find("failure") is None and case.find("error") is None)
    return tally


def teeth(place: Place) -> Figure:
    """Seeded bad exports, and random good ones."""
    caught = tests(place, "caught", [_PARITY, "-k", "caught or stale"])
    good = tests(place, "good", [_PARITY, "-k", "random", *place.some(["--exhaustive"], [])])
    drawn, alarms = place.some("100", "6"), f"{good.failed} alarms" if good.failed else "no alarm"
    counts = {"bad": caught.total, "caught": caught.total - caught.failed}
    said = f"{counts['caught']} of {counts['bad']} caught; {alarms} over {drawn} good exports and {drawn} swaps"
    held = caught.held and good.held and caught.total >= BAD
    return Figure(said, held, tuple(caught.failures + good.failures), counts)


ROWS = (Row("teeth", "the parity suite has teeth", "20 seeded bad exports caught; 100 good ones: no alarm", teeth),)
