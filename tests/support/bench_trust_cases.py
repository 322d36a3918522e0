"""Benchmarks of promises: what holds under attack, faults and load."""

from __future__ import annotations

from types import SimpleNamespace

from bench_case import BenchCase

from safetykit.bench.clients import Question
from safetykit.toolkit.model.requests import Generation

HELD = {"measured": "5 of 5", "held": True, "failures": [], "counts": {}, "seconds": 1.0, "quick": True}
ANSWER = Generation("this is a cat", (1, 2))
ALWAYS = SimpleNamespace(generate=lambda requests, tokens: [ANSWER] * len(requests))
ASKED = [Question("one", {"prompt": "what is this ?"}, ANSWER)]

TRUST = [
    BenchCase(
        "promises",
        "--out {out} --only planted names --again --quick",
        lambda ran: [
            [call[0].name for call in ran.calls["measured"]] == ["planted", "names"],
            ran.calls["measured"][0][1].quick,
            ran.read("names.json")["held"],
            "(`planted`) | 20 planted files" in (ran.path / "promises.md").read_text(),
        ],
        {"measured": HELD},
    ),
    BenchCase(
        "soak",
        "--out {out} --export {folder} --data {records} --limit 1 --minutes 1 --threads 2 --rows 3 --answers 20"
        " --quick",
        lambda ran: [
            ran.only("OnnxVLM.from_pretrained")[0].name == "folder",
            len(ran.only("questions")[1]) == 1,
            (ran.read("soak.json")["threads"], ran.read("soak.json")["rows"]) == (2, 3),
            ran.read("soak.json")["tally"]["answers"] >= 20,
            "| **leak** | 0 |" in (ran.path / "soak.md").read_text(),
        ],
        {"OnnxVLM.from_pretrained": ALWAYS, "questions": ASKED},
    ),
]
