"""VLM-Guard on the reference VLM: every variant, both checkpoints, swept on calibration, measured on test.

    python bench/vlm_guard.py -o OUT

For each checkpoint and variant: sweep on the calibration split, export the chosen setting, check
parity, and evaluate the *exported* model on the test split under ONNX Runtime, beside the unmodified
export. Writes OUT/vlm_guard.json and OUT/vlm_guard.md; finished variants are kept, so that an
interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

from safetykit.adapters.files import write_atomic
from safetykit.adapters.manifest import canonical_json
from safetykit.adapters.vlm_guard import Variant
from safetykit.export.base import export_base
from safetykit.export.pipeline import export_onnx
from safetykit.export.runtime import OnnxVLM
from safetykit.toolkit.evaluate import evaluate
from safetykit.toolkit.records import load_records
from safetykit.toolkit.sources import data_path, model_path
from safetykit.toolkit.sweep import run_sweep
from safetykit.toolkit.vlm import VLM

CHECKPOINTS = ("mild", "severe")
GROUPS = ("text", "image", "text+image", "typographic", "image/rendering-unseen", "all")
SETTING = ("gate", "layers", "rank", "alpha", "false_positive_rate", "scope", "phase")


def say(text: str) -> None:
    """Progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def rows_of(evaluation: Any) -> dict[str, Any]:
    """The evaluation's table without its decisions."""
    return {row.group: row.model_dump(mode="json") for row in evaluation.rows}


def measure(checkpoint: str, variant: str, vlm: VLM, folder: Path) -> dict[str, Any]:
    """Sweep, export, evaluate one variant."""
    records = load_records(data_path("reference"))
    fitted = [record for record in records if record.split != "test"]
    test = [record for record in records if record.split == "test"]
    journal = folder / f"{checkpoint}-{variant}.sweep.jsonl"
    sweep, adapter = run_sweep(vlm, fitted, {"variant": variant}, journal_path=journal)
    out = folder / f"{checkpoint}-{variant}"
    result = export_onnx(vlm, [adapter], out, base_onnx=folder / f"{checkpoint}-base", records=test, overwrite=True)
    after = evaluate(OnnxVLM.from_pretrained(out), test, name=out.name)
    return {
        "setting": {name: value for name, value in sweep.best.row().items() if name in SETTING},
        "trials": len(sweep.trials),
        "calibration": {name: value for name, value in sweep.best.row().items() if name not in SETTING},
        "within_cost": sweep.within_cost,
        "parity": {"passed": result.parity.passed, "logits": result.parity.worst("logits"), "flips": len(result.parity.flips)},
        "rows": rows_of(after),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: per checkpoint, attack success per carrier beside over-refusal and exact answers."""
    lines = []
    for checkpoint, variants in results.items():
        lines += [
            f"### `{checkpoint}`",
            "",
            "| | " + " | ".join(f"attack success, {group}" for group in GROUPS[:-1]) + " | over-refusal | exact answers |",
            "|---|" + "---:|" * (len(GROUPS) + 1),
        ]
        for name, found in variants.items():
            cells = []
            for group in GROUPS[:-1]:
                rate = found["rows"].get(group, {}).get("metrics", {}).get("attack_success")
                cells.append(percent(rate) if rate else "–")
            everything = found["rows"]["all"]["metrics"]
            cells += [percent(everything["over_refusal"]), percent(everything["exact"])]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def percent(rate: dict[str, Any]) -> str:
    """12.3 % (9–16)."""
    return f"{100 * rate['rate']:.1f} % ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, action="append")
    parser.add_argument("--variant", choices=get_args(Variant), action="append")
    options = parser.parse_args()
    path = options.out / "vlm_guard.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    test = load_records(data_path("reference"), ["test"])
    for checkpoint in options.checkpoint or CHECKPOINTS:
        vlm = VLM.from_pretrained(model_path(f"reference:{checkpoint}"))
        base = options.out / f"{checkpoint}-base"
        if results.get(checkpoint, {}).get("fingerprint") != vlm.fingerprint:  # other weights: start anew
            results[checkpoint] = {"fingerprint": vlm.fingerprint, "variants": {}}
            export_base(vlm, base, overwrite=True)
        found = results[checkpoint]["variants"]
        if "undefended" not in found:
            say(f"{checkpoint}: undefended")
            found["undefended"] = {"rows": rows_of(evaluate(OnnxVLM.from_pretrained(base), test, name="base"))}
        for variant in options.variant or get_args(Variant):
            if variant not in found:
                say(f"{checkpoint}: {variant}")
                found[variant] = measure(checkpoint, variant, vlm, options.out)
            write_atomic(path, canonical_json(results))
    text = table({checkpoint: found["variants"] for checkpoint, found in results.items()})
    write_atomic(options.out / "vlm_guard.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
