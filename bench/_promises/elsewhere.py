"""Rows that are measured by benchmarks and tests of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from safetykit.bench._fuzz.artifacts import KINDS
from safetykit.bench.kills import COMMANDS
from safetykit.bench.skeleton import read_results

from .row import Figure, Place, Row, Tally

ROOT = Path(__file__).parents[2]
BAD, ATTACKS = 20, 20  # seeded bad exports, and attacks on signatures, at least
MUTANTS = 10_000  # of each kind of artifact
KILLS, ROUNDS, POINTS = 200, 350, 50  # SIGKILLs of each command, kills of each; sizes of a full disk
_MEMORY = 512  # MiB
_PARITY = "tests/unit/export/test_parity.py"
_SIGNING = ("tests/unit/export/test_signing.py", "tests/unit/export/test_signing_commands.py")


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


def bench(place: Place, name: str, words: Sequence[object], enough: Callable[[Any], bool]) -> Any:
    """What a benchmark wrote into a folder of its own; it is run unless ``enough`` lies there."""
    out = place.folder / (f"{name}-quick" if place.quick else name)
    if (found := read_results(out / f"{name}.json")) and enough(found):
        return found
    typed = [sys.executable, str(ROOT / "bench" / f"{name}.py"), "-o", str(out), *map(str, words)]
    done = subprocess.run(typed, cwd=ROOT, capture_output=True, text=True)
    if (found := read_results(out / f"{name}.json")) == {}:
        raise RuntimeError(f"bench/{name}.py ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return found


def fuzzed(place: Place) -> Figure:
    """Mutants of every kind of artifact, sealed again, loaded under an audit hook."""
    wanted = place.some(MUTANTS, 20)
    found = bench(place, "fuzz", ["--mutants", wanted], lambda kinds: _fewest(kinds) >= wanted)
    wrong = ("untyped", "late", "ended", "events")
    counts = {key: sum(kind[key] for kind in found.values()) for key in ("mutants", *wrong)}
    peak = max(kind["peak_mb"] for kind in found.values())
    failures = [f"{name}: {kind[key]} {key}" for name, kind in found.items() for key in wrong if kind[key]]
    said = (
        f"{counts['mutants']:,} mutants of {', '.join(found)}: {counts['untyped']} untyped errors, {counts['late']} "
        f"over 5 s, {counts['ended']} ended processes, {counts['events']} forbidden events, {peak:.0f} MiB at most"
    )
    held = not failures and peak < _MEMORY and _fewest(found) >= wanted
    return Figure(said, held, tuple(failures), {**counts, "peak_mb": peak})


def _fewest(kinds: Mapping[str, Mapping[str, int]]) -> int:
    """Mutants of the kind that has fewest; none where an interrupted run has not come to one yet."""
    return min(kinds.get(name, {"mutants": 0})["mutants"] for name in KINDS)


def killed(place: Place) -> Figure:
    """Commands killed at random times, and disks that are full."""
    wanted, sizes = place.some((ROUNDS, POINTS), (2, 0))
    outright = place.some(KILLS, 0)
    words = ["--quick"] if place.quick else ["--rounds", wanted, "--points", sizes]

    def enough(found: Mapping[str, Any]) -> bool:
        enough = _rounds(place, found, "kills") >= wanted and _rounds(place, found, "full") >= sizes
        return enough and _outright(found) >= outright

    found = bench(place, "kills", words, enough)
    rounds = [(what, one) for what, all_ in found["kills"].items() for one in all_]
    points = [(what, one) for what, all_ in found.get("full", {}).items() for one in all_]
    bad = {
        "partial": [what for what, one in (*rounds, *points) if one["state"] == "partial"],
        "orphans": [what for what, one in (*rounds, *points) if one["orphans"]],
        "other bytes": [what for what, one in (*rounds, *points) if not one["same"]],
        "former lost": [what for what, one in rounds if one["replaces"] and one["state"] == "absent"],
        "untyped": [what for what, one in (*rounds, *points) if not one["typed"]],
        "processes left": [what for what, one in rounds if one["processes"]],
    }
    failures = [f"{name}: {what}" for name, all_ in bad.items() for what in all_]
    least = _rounds(place, found, "kills")
    said = f"{len(rounds):,} kills (at least {least} of each of {', '.join(found['kills'])}, "
    said += f"{_outright(found)} by SIGKILL), {len(points)} full disks: "
    said += ", ".join(f"{len(all_)} {name}" for name, all_ in bad.items())
    held = not failures and enough(found)
    return Figure(said, held, tuple(failures), {name: len(all_) for name, all_ in bad.items()})


def _rounds(place: Place, found: Mapping[str, Any], part: str) -> int:
    """Rounds of the command that has fewest."""
    return min(len(found.get(part, {}).get(what, ())) for what in COMMANDS[: place.some(len(COMMANDS), 1)])


def _outright(found: Mapping[str, Any]) -> int:
    """SIGKILLs of the command that has fewest."""
    return min((sum(one["signal"] == "SIGKILL" for one in all_) for all_ in found["kills"].values()), default=0)


def signed(place: Place) -> Figure:
    """Attacks on signatures, folders spoilt after they were signed, policies that say nothing."""
    tally = tests(place, "signing", [*_SIGNING, "-k", "attack or other_files or lets_nothing or every_command"])
    found = tally.figure("attacks, spoilt folders, bad policies and commands refused")
    return Figure(found.measured, found.held and tally.total >= ATTACKS, found.failures, found.counts)


def teeth(place: Place) -> Figure:
    """Seeded bad exports, and random good ones."""
    caught = tests(place, "caught", [_PARITY, "-k", "caught or stale"])
    good = tests(place, "good", [_PARITY, "-k", "random", *place.some(["--exhaustive"], [])])
    drawn, alarms = place.some("100", "6"), f"{good.failed} alarms" if good.failed else "no alarm"
    counts = {"bad": caught.total, "caught": caught.total - caught.failed}
    said = f"{counts['caught']} of {counts['bad']} caught; {alarms} over {drawn} good exports and {drawn} swaps"
    held = caught.held and good.held and caught.total >= BAD
    return Figure(said, held, tuple(caught.failures + good.failures), counts)


ROWS = (
    Row(
        "fuzz",
        "loading never runs code, unpickles or connects; malformed input gives one typed error",
        f"{MUTANTS:,} mutants of each kind: 0 forbidden events, 0 untyped, 0 over 5 s, under {_MEMORY} MiB",
        fuzzed,
    ),
    Row(
        "kills",
        "atomic and resumable",
        f"{KILLS} SIGKILLs of each command, SIGTERM and SIGHUP, {POINTS} full disks each: 0 partial artifacts load, "
        "resumed results identical, no orphans",
        killed,
    ),
    Row("signatures", "a signature means something", f"{ATTACKS} attacks and more: all refused", signed),
    Row("teeth", "the parity suite has teeth", f"{BAD} seeded bad exports caught; 100 good ones: no alarm", teeth),
)
