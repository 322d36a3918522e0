"""The benchmark of a deployed model."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from bench_case import BenchCase

SEVEN = {
    "figures": [
        {
            "benchmark": "figstep",
            "judge": "phrases",
            "arm": "sasa-published",
            "rows": [{"group": "all", "metrics": {"attack_success": {"rate": 0.5, "low": 0.2, "high": 0.8}}}],
        }
    ]
}


def compared(folder: Path) -> str:
    """What a comparison leaves."""
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(SEVEN))
    return ""


DEPLOYED = [
    BenchCase(
        "seven.seven",
        "reference:mild --out {out} --benchmark {benchmark} --fit {records} --captions reference --judge phrases"
        " --arm sasa-published --arm tga-published --limit 9 --max-new-tokens 7 --device cpu --dtype float32"
        " --precision fp32",
        lambda ran: [
            yaml.safe_load((ran.path / "grid.yaml").read_text())["models"]
            == {"model": {"path": "reference:mild", "device": "cpu", "dtype": "float32"}},
            (grid := yaml.safe_load((ran.path / "grid.yaml").read_text()))["max-new-tokens"] == 7,
            grid["judges"] == ["phrases"] and [*grid["benchmarks"]] == ["pgd"],
            grid["benchmarks"]["pgd"]["limit"] == 9 and grid["benchmarks"]["pgd"]["data"].endswith("records.jsonl"),
            grid["defences"]["sasa-published"]["settings"] == {"safety-layer": 3, "fused-layer": 4},
            grid["defences"]["sasa-published"]["data"].endswith("records.jsonl"),
            grid["defences"]["tga-published"]["settings"] == {"variant": "projector", "layers": "2,3,4"},
            grid["defences"]["tga-published"]["data"] == "reference",
            [call[:2] for call in ran.calls["safetykit"]] == [["compare", "--config"]],
            ran.only("exported")[3] == "fp32",
            "| figstep | phrases | sasa-published | 50.0 % (20–80) | – | – | parity passed |"
            in (ran.path / "seven.md").read_text(),
        ],
        {
            "safetykit": lambda *words: compared(Path(words[-1])),
            "planned": None,
            "exported": {"sasa-published": {"passed": True}},
        },
    ),
    BenchCase(
        "seven.seven",
        "reference:mild --out {out} --benchmark {benchmark} --fit {records} --device-map auto --arm one-pass",
        lambda ran: [
            yaml.safe_load((ran.path / "grid.yaml").read_text())["models"]
            == {"model": {"path": "reference:mild", "device-map": "auto"}},
        ],
        {"safetykit": lambda *words: compared(Path(words[-1])), "planned": None, "exported": {}},
    ),
]
