"""The methods beside each other: one table per checkpoint from the committed results of the other benchmarks.

    python bench/summary.py

Reads bench/results/{vlm_guard,care,sasa,tga,stack}.json, of models exported to ONNX and measured on the test split.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vlm_guard import CHECKPOINTS, percent

RESULTS = Path(__file__).parent / "results"
GROUPS = ("text", "image", "text+image", "typographic", "image/rendering-unseen")
# Name in the table, file, key of its arms, arm; None: the one that the sweep chose.
ARMS = (
    ("undefended", "vlm_guard", "variants", "undefended"),
    ("VLM-Guard, `steer`", "vlm_guard", "variants", "steer"),
    ("CARE, chosen", "care", "variants", None),
    ("SASA", "sasa", "detectors", "SASA, exported"),
    ("one-pass probe", "sasa", "detectors", "one-pass probe"),
    ("TGA, `lora`", "tga", "arms", "lora"),
    ("TGA, `projector`", "tga", "arms", "projector"),
    ("TGA `lora` and SASA, stacked", "stack", "variants", "TGA + SASA"),
)


def chosen(found: dict[str, Any]) -> str:
    """The arm whose setting is the sweep's best."""
    best = found["sweep"]["best"]
    names = [f"{best['variant']} {best['fusion']}"]
    return next(name for name in names if name in found["variants"])


def main() -> None:
    for checkpoint in CHECKPOINTS:
        heads = [*(f"attack, {group}" for group in GROUPS), "over-refusal", "exact answers"]
        print(f"**`{checkpoint}`**\n\n| | " + " | ".join(heads) + " |\n|---|" + "---:|" * len(heads))
        for title, file, key, arm in ARMS:
            found = json.loads((RESULTS / f"{file}.json").read_text())[checkpoint]
            rows = found[key][arm or chosen(found)]["rows"]
            cells = [percent(rows[group]["metrics"]["attack_success"]) for group in GROUPS]
            cells += [percent(rows["all"]["metrics"][metric]) for metric in ("over_refusal", "exact")]
            print(f"| {title} | " + " | ".join(cells) + " |")
        print()


if __name__ == "__main__":
    main()
