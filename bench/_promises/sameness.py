"""The same input gives the same bytes: fits and exports, whatever the process, its hash seed and its threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetykit.bench import processes

from .row import Figure, Place, Row, Tally

THREADS = (1, 2, 4)
METHODS: dict[str, tuple[str, ...]] = {
    "vlm-guard": (),
    "care": (),
    "one-pass": ("--refusal", "sorry ."),
    "sasa": ("--refusal", "sorry .", "--safety-layer", "2", "--fused-layer", "5"),
}
LIMIT = 60  # records of each split: what differs would differ with these


def called(words: Sequence[Any], seed: int, threads: int = 1) -> None:
    """A command in a process of its own.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    environment = {**os.environ, "PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": str(threads)}
    typed = [sys.executable, "-m", "safetykit", *map(str, words), "-q"]
    done = subprocess.run(typed, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(typed)}: {done.stderr.strip()[-500:]}")


def fits(place: Place) -> Figure:
    """Each method by several processes; their digests."""
    tally, found = Tally(), dict[str, list[str]]()
    with place.scratch("fits") as work:
        data = processes.copied(work, "reference", 1, LIMIT)
        methods = list(METHODS)[: place.some(4, 1)]
        for at in range(place.some(20, 2)):
            method, seed, threads = methods[at % len(methods)], at * 7919, THREADS[at // len(methods) % len(THREADS)]
            called(["fit", method, place.model, "--data", data, "-o", work / str(at), *METHODS[method]], seed, threads)
            found.setdefault(method, []).append(processes.digest(work / str(at)))
    for method, digests in found.items():
        for digest in digests:
            tally.true(f"{method}: {digest[:12]} after {digests[0][:12]}", digest == digests[0])
    return tally.figure(f"fits have the bytes of the first of their method ({len(found)} methods)", found)


def launched(place: Place) -> Figure:
    """A fit by 1, 2 and 4 processes of a job, with 1, 2 and 4 threads each and other hash seeds."""
    tally, found = Tally(), dict[str, str]()
    before = os.environ.get("PYTHONHASHSEED")
    try:
        with place.scratch("launched") as work:
            data = processes.copied(work, "reference", 1, LIMIT)
            words = ["fit", "vlm-guard", place.model, "--data", data, "-q"]
            for count in (1, 2, 4)[: place.some(3, 1)]:
                for threads in THREADS[: place.some(3, 2)]:
                    os.environ["PYTHONHASHSEED"] = str(count * 10 + threads)
                    found[f"{count} × {threads}"] = processes.written(work, count, words, threads)
    finally:
        os.environ.pop("PYTHONHASHSEED", None)
        os.environ |= {} if before is None else {"PYTHONHASHSEED": before}
    for name, digest in found.items():
        tally.true(f"{name}: {digest[:12]}", digest == next(iter(found.values())))
    return tally.figure("combinations of processes × threads give the same bytes", found)


def exports(place: Place) -> Figure:
    """The same export by two processes with other hash seeds, file by file."""
    tally = Tally()
    with place.scratch("exports") as work:
        words = ["export", place.model, "--adapter", place.guard, "--data", "reference", "--limit", 8]
        words += ["--base-onnx", place.base] if place.quick else []
        for at in range(2):
            called([*words, "-o", work / str(at) / "export"], seed=at + 1)  # the card names the folder
        first, second = ({path.name: path for path in sorted((work / str(at)).rglob("*"))} for at in range(2))
        tally.true(f"other files: {sorted(first.keys() ^ second.keys())}", first.keys() == second.keys())
        for name in first.keys() & second.keys():
            tally.true(name, _bytes(first[name]) == _bytes(second[name]))
    return tally.figure("files of two exports are the same bytes")


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


ROWS = (
    Row(
        "fits",
        "deterministic fit",
        "20 processes, as many hash seeds, 1, 2, 4 threads, 4 methods: byte-identical adapters on the CPU",
        fits,
    ),
    Row(
        "launched", "the same bytes from several processes", "1, 2, 4 processes × 1, 2, 4 threads: identical", launched
    ),
    Row("exports", "the same export twice", "two processes: every file identical", exports),
)
