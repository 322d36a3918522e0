"""Benchmarks of promises: what holds under attack, faults and load."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
from bench_case import BenchCase

from safetykit.bench.clients import Question
from safetykit.bench.load import CONTROL, LOOP
from safetykit.bench.serve import BATCHES, GENAI, SINGLE, THREAD, Settings
from safetykit.toolkit.model.requests import Generation

HELD = {"measured": "5 of 5", "held": True, "failures": [], "counts": {}, "seconds": 1.0, "quick": True}
ANSWER = Generation("this is a cat", (1, 2))
ALWAYS = SimpleNamespace(generate=lambda requests, tokens: [ANSWER] * len(requests))
ASKED = [Question("one", {"prompt": "what is this ?"}, ANSWER)]

ARM = {
    "p50": 0.1,
    "p95": 0.2,
    "tokens_per_second": 40.0,
    "over": [2.0, 1.9, 2.1],
    "over_processor": [3, 2, 4],
    "wrong": 0,
}
SERVED = {
    "speeds": dict.fromkeys((LOOP, CONTROL, GENAI, SINGLE, "4", "2", THREAD), ARM),
    "mixed": dict.fromkeys((LOOP, CONTROL, GENAI, SINGLE, "8", THREAD), ARM),
    "lengths": {"32": dict.fromkeys((LOOP, CONTROL, SINGLE, BATCHES), ARM)},
    "rows": {"8": {"preparing": 0.1, "vision encoder": 0.2, "decoder, prompt": 0.3, "decoder, a token": 0.4}},
    "same": {"alone, whole": {"answers": 3, "refusals": 1}},
    "overload": {"answers": 3, "429": 5},
    "peak": [300, 290],
    "memory": {"by_minute": [200.0, 201.0], "slope": None, "answers": 9, "wrong": 0},
    "records": 1,
    "canaries": 1,
    "max_batch": 5,
    "cpus": 2,
}

SAID = [{"asked": "?", "picture": True, "text": "yes .", "reason": "stop", "risk": -1.5}]
HARNESSED = {
    "records": 1,
    "pictures": 0,
    "refused": 0,
    "harnesses": {
        "openai": {"version": "3.57.0", "decisions": [1, 1], "texts": [0, 0], "report": "a | b", "transcript": SAID},
        "garak": {"failed": "no hub"},
    },
}

_TALLY = {"answers": 3, "refusals": 1, "tokens": 10}
TRITON = {
    "loop": ARM,
    "server": "2.59.0",
    "records": 3,
    "clients": 2,
    "cpus": 2,
    "ready": 9.0,
    "ways": {"http, 2": {"p50": 0.1, "p95": 0.2, "seconds": 2.0, "tally": _TALLY}},
    "faults": {"kinds": {"no JSON": {"http": ["400", "invalid_json: request: none."]}}, "tally": _TALLY},
    "restart": {"killed": {"answered": 1, "failed": 2}, "ready": 8.0, "tally": _TALLY},
    "perf": [
        {"model": "chat", "how": "http", "Concurrency": 1.0, "Inferences/Second": 9.0}
        | {"p50 latency": 7000.0, "p95 latency": 8000.0}
    ],
}
REPLICAS = {
    "ray": "2.60.0",
    "replicas": 2,
    "requests": 6,
    "clients": 2,
    "cpus": 2,
    "seconds": 1.0,
    "back": 2.0,
    "p50": 0.1,
    "p95": 0.2,
    "tally": {"answers": 6, "refusals": 1, "asked again": 2, "status 503": 2},
}

DRIFTED = {
    "references": [{"what": "risk", "pictures": "none", "records": 100}],
    "window": 5,
    "streams": 200,
    "false_alarms": 0.01,
    "rows": {"calibration": {"1": 0, "20": 2}, "harmful": {"1": 100, "20": 200}},
    "served": ["drift: risk"],
}


def a_card(name: str, folder: Path) -> Path:
    """An export that is its card."""
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# A card")
    return folder


_SAID = [(f"objective {at}", text, at % 2 == 0) for at in range(10) for text in (f"sorry {at}", f"step one {at}")]


def weighs(path: Path) -> bool:
    """Whether a file holds the weights of a judge."""
    from safetensors.numpy import load_file

    from safetykit.toolkit.evaluation.judges.learned import BUCKETS

    found = load_file(path)
    return found["weight"].shape == (BUCKETS,) and found["bias"].shape == (1,)


TRUST = [
    BenchCase(
        "pictures",
        "--out {out}",
        lambda ran: [
            "refused, 0 wrong." in (ran.path / "pictures.md").read_text(),
            ran.read("pictures.json")["16-bit grey PNG"]["load_image_off"] > 100,
            "HEIC, which is not read" in ran.read("pictures.json")["HEIC"]["said"],
        ],
    ),
    BenchCase(
        "judge",
        "{folder} --out {out} --weights {other}",
        lambda ran: [
            "20 answers to 10 objectives; people found 10 fulfilled." in (ran.path / "judge.md").read_text(),
            "| `phrases`, whole | 50 % (30–70) | 0.00 | – |" in ran.out,
            weighs(ran.path.with_name("other")),
        ],
        {
            "labelled": (
                [one for one, _, _ in _SAID],
                [text for _, text, _ in _SAID],
                np.array([fulfilled for _, _, fulfilled in _SAID]),
            )
        },
    ),
    BenchCase(
        "drift",
        "--out {out} --export {folder} --data {records} --window 5 --windows 20 --streams 200 --quick",
        lambda ran: [
            (ran.only("measured")[0].name, ran.only("measured")[2:5]) == ("folder", [5, 20, 200]),
            ran.read("drift.json") == DRIFTED,
            "| harmful | 50.0 % | 100.0 % |" in (ran.path / "drift.md").read_text(),
        ],
        {"measured": DRIFTED},
    ),
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
        "cards",
        "--out {out} --card reference-mild-sasa --card reference-severe-vlm-guard --into {other}",
        lambda ran: [
            [call[0] for call in ran.calls["make"]] == ["reference-mild-sasa", "reference-severe-vlm-guard"],
            (ran.path.with_name("other") / "reference-mild-sasa.md").read_text() == "# A card",
        ],
        {"make": a_card},
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
    BenchCase(
        "serve",
        "--out {out} --export {folder} --data {records} --limit 1 --concurrency 2 --concurrency 4 --requests 3"
        " --rounds 2 --max-batch 5 --length 6 --canaries 7 --minutes 1 --quick",
        lambda ran: [
            (ran.only("measured")[0].name, ran.only("measured")[1], len(ran.only("measured")[2]))
            == ("folder", None, 1),
            ran.only("measured")[4] == Settings([2, 4], [6], 3, 2, 5, 7, 1),
            "| 2 | 100 | 200 | 40 | 2.00 (1.90–2.10) | 3.00 (2.00–4.00) | 0 |" in (ran.path / "serve.md").read_text(),
            "Answers of 8 to 128 tokens" in (text := (ran.path / "serve.md").read_text())
            and "| 8 | 100 | 200 |" in text,
            "| 32 | 2.00 (1.90–2.10) | 3.00 (2.00–4.00) |" in (ran.path / "serve.md").read_text(),
            "| 3 | 0 | 0 | 0 | 0 | 0 | 0 | 0 | 5 |" in (ran.path / "serve.md").read_text(),
            "| 8 | 0.10 | 0.20 | 0.30 | 0.40 |" in (ran.path / "serve.md").read_text(),
            "In 2 minutes 9 answers, 0 wrong" in (ran.path / "serve.md").read_text(),
        ],
        {"measured": SERVED},
    ),
    BenchCase(
        "serve",
        "--out {out} --checkpoint a-larger-one --data {records} --quick",
        lambda ran: [
            ran.only("make_export")[1:] == ["a-larger-one", str(ran.path.with_name("records.jsonl"))],
            ran.only("endless")[1] == "a-larger-one" and ran.only("measured")[:2] == ["made", "endless"],
        ],
        {"measured": SERVED, "make_export": "made", "endless": "endless"},
    ),
    BenchCase(
        "harnesses",
        "--out {out} --export {folder} --data {records} --limit 1 --envs {folder} --harness garak --harness openai",
        lambda ran: [
            (ran.only("measured")[0].name, len(ran.only("measured")[1])) == ("folder", 1),
            (ran.only("measured")[2], ran.only("measured")[3].name) == (["garak", "openai"], "folder"),
            "| openai 3.57.0 | whole and" in (ran.path / "clients.md").read_text(),
            "| 1 of 1 | – | a / b |" in (ran.path / "clients.md").read_text(),
            "| ? | yes | yes . | stop | -1.50 |" in (ran.path / "clients.md").read_text(),
            "does not run offline: no hub" in (ran.path / "clients.md").read_text(),
        ],
        {"measured": HARNESSED},
    ),
    BenchCase(
        "triton_server",
        "--out {out} --python other-python --export {folder} --limit 3 --clients 2 --perf-analyzer analyzer",
        lambda ran: [
            (ran.only("measured")[0].name, ran.only("measured")[1]) == ("folder", "other-python"),
            ran.only("measured")[-3:] == [3, 2, Path("analyzer")],
            ran.read("triton_server.json") == TRITON,
            "| HTTP, 2 at once | 3 | 1 | 100 | 200 | 5 | 0 |" in (text := (ran.path / "triton_server.md").read_text()),
            "1 of 1 got a typed error" in text and "| `chat` | http | 1 | 9 | 7 | 8 |" in text,
        ],
        {"measured": TRITON, "installed": lambda python: str(python)},
    ),
    BenchCase(
        "replicas",
        "--out {out} --python other-python --export {folder} --limit 3 --requests 6 --clients 2",
        lambda ran: [
            (ran.only("measured")[0].name, ran.only("measured")[1]) == ("folder", Path("other-python")),
            ran.only("measured")[-3:] == [3, 6, 2],
            ran.read("replicas.json") == REPLICAS,
            "status 503: 2." in (text := (ran.path / "replicas.md").read_text()) and "| 6 | 1 | 2 | 0 |" in text,
        ],
        {"measured": REPLICAS},
    ),
]
