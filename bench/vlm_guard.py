"""VLM-Guard on the reference VLM: every variant, both checkpoints, swept on calibration, measured on test.

    python bench/vlm_guard.py -o OUT

For each checkpoint: sweep on the calibration split; then for the best setting of each variant export,
check parity, and evaluate the *exported* model on the test split under ONNX Runtime, beside the
unmodified export. Writes OUT/vlm_guard.json and OUT/vlm_guard.md. An interrupted run goes on where it
was.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.registry import get_method
from safetykit.adapters.vlm_guard.settings import Variant, VLMGuard
from safetykit.bench import skeleton
from safetykit.export.base.own import export_base
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.evaluation.evaluate import evaluate, tabulate
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.sweep.run import run_sweep
from safetykit.toolkit.sweep.trials import Sweep, Trial
from safetykit.toolkit.workbench import Workbench

GROUPS = ("text", "image", "text+image", "typographic", "image/rendering-unseen", "all")
SETTING = ("variant", "direction", "gate", "layers", "rank", "alpha", "false_positive_rate", "scope", "phase")


def sweep_of(checkpoint: str, vlm: VLM, folder: Path) -> Sweep:
    """One sweep over all variants; an interrupted one goes on, a finished one is read back."""
    done = folder / f"{checkpoint}-sweep.json"
    if done.is_file() and (kept := json.loads(done.read_text()))["fingerprint"] == vlm.fingerprint:
        return Sweep.from_table(kept["sweep"], VLMGuard)
    skeleton.say(f"{checkpoint}: sweep")

    def progress(number: int, total: int) -> None:
        if number % 20 == 0:
            skeleton.say(f"{checkpoint}: {number} of {total} settings")

    records = load_records(data_path("reference"), ["fit", "calibration"])
    sweep = run_sweep(
        get_method("vlm-guard"),
        Workbench(vlm, records),
        journal_path=folder / f"{checkpoint}.sweep.jsonl",
        progress=progress,
    ).sweep
    write_atomic(done, canonical_json({"fingerprint": vlm.fingerprint, "sweep": sweep.table()}))
    return sweep


def measure(trial: Trial, adapter: Adapter, vlm: VLM, base: Path, out: Path) -> dict[str, Any]:
    """Export one setting and evaluate the export."""
    test = load_records(data_path("reference"), ["test"])
    result = export_onnx(vlm, [adapter], out, base_onnx=base, records=test, overwrite=True)
    row = trial.row()
    return {
        "setting": {name: value for name, value in row.items() if name in SETTING},
        "calibration": {
            name: value for name, value in row.items() if name in ("attack_success", "over_refusal", "exact")
        },
        "parity": skeleton.parity_figures(result.parity),
        "rows": skeleton.rows_by_group(tabulate(result.decisions[1])),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: per checkpoint, attack success per carrier beside over-refusal and exact answers."""
    lines = []
    for checkpoint, variants in results.items():
        lines += [
            f"### `{checkpoint}`",
            "",
            "| | " + " | ".join(f"attack, {group}" for group in GROUPS[:-1]) + " | over-refusal | exact answers |",
            "|---|" + "---:|" * (len(GROUPS) + 1),
        ]
        for name, found in variants.items():
            cells = []
            for group in GROUPS[:-1]:
                rate = found["rows"].get(group, {}).get("metrics", {}).get("attack_success")
                cells.append(skeleton.percent(rate) if rate else "–")
            everything = found["rows"]["all"]["metrics"]
            cells += [skeleton.percent(everything["over_refusal"]), skeleton.percent(everything["exact"])]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    parser = skeleton.arguments(__doc__)
    skeleton.results_folder(parser)
    options = parser.parse_args(given)
    skeleton.one_thread()
    path = options.out / "vlm_guard.json"
    results: dict[str, Any] = skeleton.read_results(path)
    test = load_records(data_path("reference"), ["test"])
    fitted = load_records(data_path("reference"), ["fit", "calibration"])
    for checkpoint in options.checkpoint or skeleton.CHECKPOINTS:
        vlm = VLM.from_pretrained(model_path(f"reference:{checkpoint}"))
        if results.get(checkpoint, {}).get("fingerprint") == vlm.fingerprint:
            continue
        base = options.out / f"{checkpoint}-base"
        export_base(vlm, base, overwrite=True)
        undefended = evaluate(OnnxVLM.from_pretrained(base), test, name="base")
        found: dict[str, Any] = {"undefended": {"rows": skeleton.rows_by_group(undefended.rows)}}
        sweep = sweep_of(checkpoint, vlm, options.out)
        for variant in get_args(Variant):
            skeleton.say(f"{checkpoint}: exporting {variant}")
            trial = sweep.best_of(variant=variant)
            out = options.out / f"{checkpoint}-{variant}"
            found[variant] = measure(trial, trial.setting.fit(vlm, fitted), vlm, base, out)
        results[checkpoint] = {"fingerprint": vlm.fingerprint, "sweep": sweep.table(), "variants": found}
        skeleton.write_results(path, results)
    text = table({checkpoint: found["variants"] for checkpoint, found in results.items()})
    skeleton.write_table(options.out / "vlm_guard.md", text)


if __name__ == "__main__":
    skeleton.run(main)
