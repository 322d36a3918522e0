"""Benchmarks of memory, size, scale and what interruptions leave."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

from bench_case import BenchCase


def two_wheels(extra: str, folder: Path) -> list[Path]:
    """What pip would leave: safetykit's own wheel and another."""
    for name, size in (("safetykit", 100), ("numpy", 2_000_000)):
        with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as packed:
            packed.writestr("safetykit/toolkit/reference/mild/model.safetensors", bytes(size))
            packed.writestr("safetykit/cli.py", bytes(size // 2))
    return sorted(folder.glob("*.whl"))


PASSED = {"seconds": 3.0, "resident_mb": 200.0, "anonymous_mb": 100.0, "passed": 7, "records_per_second": 9.0}
SPENT = {"seconds": 2.0, "peak_gb": 1.5, "anonymous_gb": 0.5}

KILLED = {
    "signal": "SIGKILL",
    "at": "touch 3",
    "processes": 0,
    "typed": True,
    "kept": [],
    "replaces": True,
    "ended_in": 0.5,
    "code": -9,
    "coded": True,
    "state": "absent",
    "left": [".out.writing"],
    "orphans": [".out.writing"],
    "same": True,
}
FULL = {"code": 8, "typed": True, "state": "absent", "left": [], "orphans": [], "same": True}
FORKED_COMPARE = {
    "one_thread": None,
    "make_inputs": None,
    "import_all": None,
    "alone": {"processor": 2.0, "touched": 40},
    "written": {},
}
COMPARE_KILLED = {
    "signal": "SIGKILL",
    "at": 0.5,
    "code": -9,
    "ended_in": 0.1,
    "processes": 0,
    "kept": ["cells/a.json"],
    "broken": [],
    "typed": True,
    "again": 0,
    "same": False,
    "differs": ["results.json"],
}
FORKED = {
    "load_libraries": None,
    "able_to_mount": None,
    "one_thread": None,
    "make_inputs": None,
    "made": ("a" * 64, 1.0, 0.5),
    "Lab._alone": {"twice": True, "seconds": 1.0, "processor": 0.5},
}


SIZES = [
    BenchCase(
        "install",
        "--out {out} --extra cpu,fit",
        lambda ran: [
            ran.only("fetched")[0] == "cpu,fit",
            ran.read("install.json")["own"] == {"reference VLM": 100, "code": 50},
            "| `safetykit[cpu,fit]` | 2 | 3.0 MB | numpy 3.0 MB, safetykit" in (ran.path / "install.md").read_text(),
        ],
        {"fetched": two_wheels},
    ),
    BenchCase(
        "random_model",
        "{out} --layers 1 --width 64",
        lambda ran: ran.read("config.json")["text_config"]["hidden_size"] == 64,
    ),
    BenchCase(
        "size",
        "--out {out} --size 1x64 --scratch {folder}",
        lambda ran: [
            json.loads(ran.path.read_text())["sizes"] == [{"mb": 1}],
            ran.only("_measure")[0] == "1x64" and ran.only("_measure")[1].parent.name == "folder",
        ],
        {"_measure": {"mb": 1}},
    ),
    BenchCase(
        "size",
        "--step load --scratch {folder}",
        lambda ran: ran.value == {"mb": 1} and ran.only("_step")[0] == "load",
        {"_step": {"mb": 1}},
    ),
    BenchCase(
        "scale",
        "--out {out} --size tiny --step inspect --step verify --scratch {folder}",
        lambda ran: [
            ran.only("checkpoint")[0] == "tiny" and ran.only("checkpoint")[1].parent.name == "folder",
            [call[0][0] for call in ran.calls["measured"]] == ["inspect", "verify"],
            ran.read("scale.json")["tiny verify"] == {"checkpoint_gb": 0.0} | SPENT,
            "| tiny (0.0 GB) | verify | 2 s | 1.5 GB | 0.5 GB | 2.0 GB |" in (ran.path / "scale.md").read_text(),
            "plus 2 GB, held." in (ran.path / "scale.md").read_text(),
        ],
        {"measured": SPENT, "checkpoint": lambda size, work: work, "records": "r"},
    ),
    BenchCase(
        "scale",
        "-o {out} --size tiny --step inspect --keep {folder}",
        lambda ran: [
            (ran.only("checkpoint")[1] / "made").is_file(),
            "plus 2 GB, did not hold." in (ran.path / "scale.md").read_text(),
        ],
        {"measured": SPENT | {"peak_gb": 2.5}, "checkpoint": lambda size, work: work, "records": "r"},
    ),
    BenchCase(
        "records",
        "--out {out} --records 7 --records 5 --method care --model {checkpoint} --scratch {folder}",
        lambda ran: [
            [call[0] for call in ran.calls["measured"]] == ["care", "care"],
            [call[2].name for call in ran.calls["measured"]] == ["7.parquet", "5.parquet"],
            ran.calls["measured"][0][3].parent.name == "folder",
            "| care | 7 | 200 MiB | 100 MiB | 9 | 3 s |" in (ran.path / "records.md").read_text(),
            list(ran.read("records.json")) == ["care 5", "care 7"],
        ],
        {"measured": PASSED},
    ),
    BenchCase(
        "records",
        "-o {out} --quick --model {checkpoint}",
        lambda ran: list(ran.read("records.json")) == ["vlm-guard 100"],
        {"measured": PASSED},
    ),
    BenchCase(
        "scale",
        "-o {out} --quick",
        lambda ran: list(ran.read("scale.json")) == ["tiny inspect"],
        {"measured": SPENT, "checkpoint": lambda size, work: work, "records": "r"},
    ),
    BenchCase(
        "processes",
        "--out {out} --data reference --limit 4 --method care export --processes 1 2 --threads 1 --kills 3 --rounds 1"
        " --copies 2",
        lambda ran: [
            [call[1] for call in ran.calls["written"]] == [1, 2, 1, 2] and ran.calls["written"][0][3] == 1,
            ran.read("processes.json")["identity"]["care"] == dict.fromkeys(("1 × 1", "2 × 1", "two hosts"), "a" * 64),
            [call[1] for call in ran.calls["killed"]] == ["care", "export", "care"],
            len((Path(ran.calls["killed"][0][2]) / "records.jsonl").read_text().splitlines()) == 12,
            len((ran.path / "records-all-2" / "records.jsonl").read_text().splitlines()) > 4000,
            "| two | 0.50 (0.50–0.50) | 0.60 (0.60–0.60) |" in (ran.path / "processes.md").read_text(),
            "3 kills: in 3 the others ended (in 1.5 s at most)" in (ran.path / "processes.md").read_text(),
        ],
        {
            "make_export": None,
            "written": "a" * 64,
            "on_two_hosts": "a" * 64,
            "timed": {
                "one": {"records": 2.0, "command": 5.0},
                "control": {"records": 2.0, "command": 5.0},
                "two": {"records": 1.0, "command": 3.0},
                "independent": {"records": 2.0, "command": 5.0},
            },
            "killed": {
                "ended_in_seconds": 1.5,
                "others_ended": True,
                "nothing_half_written": True,
                "same": True,
                "orphans": [],
            },
        },
    ),
    BenchCase(
        "processes",
        "-o {out} --quick",
        lambda ran: list(ran.read("processes.json")["identity"]["vlm-guard"]) == ["1 × 1", "2 × 1", "two hosts"],
        {"written": "a" * 64, "on_two_hosts": "a" * 64},
    ),
    BenchCase(
        "compare_kills",
        "--out {out} --points 3 --limit 4",
        lambda ran: [
            [one["signal"] for one in ran.read("compare_kills.json")["rounds"]] == ["SIGKILL"] * 3,
            len(ran.calls["once"]) == 3,
            len((ran.path / "records-4-1" / "records.jsonl").read_text().splitlines()) == 12,
            "| 3 | 3 | 3 | 0 | 0 | 0 | 0 | 3 |" in (ran.path / "compare_kills.md").read_text(),
        ],
        {**FORKED_COMPARE, "once": COMPARE_KILLED},
    ),
    BenchCase(
        "compare_kills",
        "-o {out} --quick",
        lambda ran: len(ran.read("compare_kills.json")["rounds"]) == 2,
        {**FORKED_COMPARE, "once": COMPARE_KILLED},
    ),
    BenchCase(
        "kills",
        "--out {out} --what eval index --rounds 2 --points 1 --limit 4",
        lambda ran: [
            [tuple(call) for call in ran.calls["Lab.killed"]]
            == [(what, at) for at in (0, 1) for what in ("eval", "index")],
            [tuple(call) for call in ran.calls["Lab.full"]] == [("eval", 0, 1), ("index", 0, 1)],
            len((ran.path / "records-4-1" / "records.jsonl").read_text().splitlines()) == 12,
            "| eval | 2 (2, 0, 0) | 2 | 0 | 2 | 0 | 0 | 0 | 0 | 2 | 0 |" in (ran.path / "kills.md").read_text(),
            "| index | 1 | 1 | 0 | 0 | 0 | 0 |" in (ran.path / "kills.md").read_text(),
        ],
        {**FORKED, "Lab.killed": KILLED, "Lab.full": FULL},
    ),
    BenchCase(
        "kills",
        "-o {out} --quick",
        lambda ran: len(ran.read("kills.json")["kills"]["fit"]) == 2 and "full" not in ran.read("kills.json"),
        {**FORKED, "Lab.killed": KILLED},
    ),
    BenchCase(
        "memory",
        "--out {out} --size tiny --layout shards --precision int4 --scratch {folder}",
        lambda ran: [
            ran.only("_measured_layout")[:3] == ["tiny", "shards", ["int4"]],
            ran.only("_measured_layout")[3].parent.name == "folder",
            ran.read("memory.json") == {"tiny shards int4": {"mb": 1}},
        ],
        {"_measured_layout": [("tiny shards int4", {"mb": 1})], "table": "| |"},
    ),
    BenchCase(
        "memory",
        "-o {out} --export {checkpoint} --precision fp16",
        lambda ran: ran.value == {"mb": 1} and ran.only("measured")[2] == "fp16",
        {"measured": {"mb": 1}},
    ),
    BenchCase(
        "memory",
        "-o {out} --quick",
        lambda ran: {call[0] for call in ran.calls["_measured_layout"]} == {"tiny"},
        {"_measured_layout": [], "table": "| |"},
    ),
    BenchCase(
        "fit",
        "{checkpoint} --data {records} --method care --rounds 2",
        lambda ran: [
            ran.value["method"] == "care" and ran.only("times")[2:] == ["care", 2],
            "memory" not in ran.value,
        ],
        {"times": {}},
    ),
    BenchCase(
        "fit",
        "{checkpoint} --data {records} --method sasa --copies 3 --memory -o {out}",
        lambda ran: [
            len({record.id for record in ran.only("times")[1]}) == 12,
            [call[3] for call in ran.calls["peak_megabytes"]] == [0, 1, 2, 4, 8],
            list(ran.read("fit.json")) == ["32 8 12 sasa"],
            "| 32 layers of width 8 | 12 | sasa | 2.50 | 2.00 (1.00–3.00) |" in (ran.path / "fit.md").read_text(),
        ],
        {
            "times": {
                "layers": 32,
                "width": 8,
                "records": 12,
                "passes": 2.5,
                **{name: {"median": 2, "low": 1, "high": 3} for name in ("fit_over_bare", "control")},
            },
            "peak_megabytes": {},
        },
    ),
    BenchCase(
        "fit",
        "{checkpoint} --data {records} --method care-kernel --one-fit 2",
        lambda ran: ran.only("one_fit")[2:] == ["care-kernel", 2],
        {"one_fit": None},
    ),
    BenchCase(
        "scale",
        "--out {out} --size tiny --step fit --scratch {folder}",
        lambda ran: [
            ran.only("measured")[0][0] == "fit",
            ran.only("checkpoint")[0] == "tiny" and ran.only("checkpoint")[1].parent.name == "folder",
            list(ran.read("scale.json")) == ["tiny fit"],
        ],
        {
            "checkpoint": lambda size, work: work,
            "records": lambda folder: folder,
            "measured": SPENT,
        },
    ),
    BenchCase(
        "scale",
        "-o {out} --quick",
        lambda ran: list(ran.read("scale.json")) == ["tiny inspect"],
        {
            "checkpoint": lambda size, work: work,
            "records": lambda folder: folder,
            "measured": SPENT,
        },
    ),
    BenchCase(
        "rounding",
        "{checkpoint} --data {records} --base-onnx {base} --records 1 --half",
        lambda ran: [
            ran.value["records"] == 1,
            0 < ran.value["pytorch"] < ran.value["pytorch_half"],
            0 < ran.value["onnx"] < 1e-3,
        ],
    ),
]
