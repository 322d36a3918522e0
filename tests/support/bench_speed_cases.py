"""Benchmarks of latency."""

from __future__ import annotations

import json
from types import SimpleNamespace

from bench_case import BenchCase

LATENCY = [
    BenchCase(
        "latency",
        "{base} {base} --data {records} --batch 1 --rounds 5 --decode-steps 2 --provider CPUExecutionProvider",
        lambda ran: (ran.value["rounds"], ran.value["decode_steps"], ran.value["batch"]) == (5, 2, 1),
    ),
    BenchCase(
        "modes",
        "--quick --layers 2 --width 128 --vocabulary 64 --adapted 1 --rank 2 --precision int4 --batch 2"
        " --prompt-tokens 4 --rounds 5 --decode-steps 1 --folder {out}",
        lambda ran: [
            ran.value["median_ms"]["unmodified"][0] > 0,
            ran.value["options"]["precision"] == "int4" and ran.value["options"]["adapted"] == 1,
            ran.value["options"]["batch"] == 2 and ran.value["options"]["rank"] == 2,
            (ran.path / "decoder.onnx").is_file(),
        ],
        slow=True,
    ),
    BenchCase(
        "detector_latency",
        "--quick --layers 3 --width 128 --vocabulary 64 --safety 1 --fused 2 --batch 2 --prompt-tokens 4 --rounds 5"
        " --decode-steps 1 --folder {out}",
        lambda ran: [
            (ran.value["options"]["safety"], ran.value["options"]["fused"], ran.value["options"]["batch"]) == (1, 2, 2),
            any(ran.path.iterdir()),
        ],
        slow=True,
    ),
    BenchCase(
        "decoders",
        "--out {out} --tokens 8 --layers 3 --width 64 --vocabulary 32 --threads 2 --rounds 6 --decode-steps 2"
        " --folder {folder}",
        lambda ran: [
            ran.only("write")[0].name == "folder" and ran.only("measure")[1] == 8,
            {name: getattr(ran.only("write")[1], name) for name in ("layers", "width", "vocabulary", "threads")}
            == {"layers": 3, "width": 64, "vocabulary": 32, "threads": 2},
            (ran.only("measure")[2].rounds, ran.only("measure")[2].decode_steps) == (6, 2),
            list(ran.read("decoders.json")["lengths"]) == ["8"],
        ],
        {"memory": 1.0, "write": {}, "opened": None, "measure": {}, "table": "| |"},
    ),
    BenchCase(
        "decoders",
        "--quick -o {out}",
        lambda ran: ran.only("write")[1].layers == 1 and ran.only("measure")[1] == 8,
        {"memory": 1.0, "write": {}, "opened": None, "measure": {}, "table": "| |"},
    ),
    BenchCase(
        "decoders",
        """--alone '["pytorch", "{out}", {"threads": 1}]'""",
        lambda ran: ran.only("alone")[0] == "pytorch" and ran.only("alone")[2].threads == 1,
        {"alone": 1.0},
    ),
    BenchCase(
        "fold",
        "{checkpoint} {base} --data {records} --rank 2 --batch 1 --rounds 5 --baked",
        lambda ran: [
            [call[2].name for call in ran.calls["measure"]] == ["folded", "baked"],
            all(len(call[4]) == 1 and call[5] == 5 for call in ran.calls["measure"]),
            all(call[1].interventions[0].tensors["basis"].shape[1] == 2 for call in ran.calls["measure"]),
        ],
        {"measure": {"nodes": {}}},
    ),
    BenchCase(
        "fold",
        "{checkpoint} {out} --data {records} --precision fp16",
        lambda ran: ran.only("export_base")[2] == "fp16" and ran.only("measure")[5] == 40,
        {"export_base": lambda vlm, out, precision: None, "read_manifest": SimpleNamespace(precision="fp16")}
        | {"count_nodes": 1, "write_folded": None, "measure": {}},
    ),
    BenchCase(
        "gpu",
        "{checkpoint} -o {out} --data {records} --adapter {adapter} --batch 1 --rounds 3"
        " --provider CPUExecutionProvider --precision fp16 --mode hot-swap",
        lambda ran: [
            json.loads(ran.path.read_text())["matrix"] == {"adapter": {"fp16, hot-swap": {"passed": True}}},
            ran.only("cell")[4:6] == ["fp16", "hot-swap"] and len(ran.only("cell")[6]) == 1,
            ran.only("cell")[7:] == ["CPUExecutionProvider", 3],
        ],
        {"cell": {"passed": True}, "export_base": None},
    ),
    BenchCase(
        "gpu",
        "{checkpoint} --out {out} --data {records} --adapter {adapter} --quick",
        lambda ran: ran.only("cell")[4:6] == ["fp32", "bake"] and ran.only("cell")[8] == 5,
        {"cell": {"passed": True}, "export_base": None},
    ),
]
