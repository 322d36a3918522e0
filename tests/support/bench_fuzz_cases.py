"""The benchmark of changed artifacts."""

from __future__ import annotations

from bench_case import BenchCase

FIGURES = {"mutants": 9, "seed": 5, "accepted": 2, "refused": 7, "untyped": 0, "late": 0, "ended": 0, "events": 0}

FUZZ = [
    BenchCase(
        "fuzz",
        "-o {out} --mutants 9 --kind index --seed 5",
        lambda ran: [
            ran.only("fuzz")[0] == "index" and ran.only("fuzz")[2:] == [9, 5, None],
            ran.read("fuzz.json")["index"]["refused"] == 7,
            "| index | 9 | 7 | 2 | 0 |" in (ran.path / "fuzz.md").read_text(),
        ],
        replaced={"fuzz": [{**FIGURES, "peak_mb": 100.0, "slowest": 0.5}]},
    ),
    BenchCase(
        "fuzz",
        "-o {out} --quick --kind adapter",
        lambda ran: ran.only("fuzz")[2:] == [20, 0, None],
        replaced={"fuzz": [{**FIGURES, "peak_mb": 100.0, "slowest": 0.5}]},
    ),
]
