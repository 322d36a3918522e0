"""What rounded weights do to decisions, and what setting thresholds again brings back.

    python bench/recalibrate.py -o OUT [--records 200]

Fits SASA, the one-pass probe and VLM-Guard with its whitened gate on the reference VLM ``mild``, exports each in int4
with the fitted thresholds and with thresholds set again, and counts decisions that differ from those of fp32 PyTorch on
test records. Writes OUT/recalibrate.json and OUT/recalibrate.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.one_pass.settings import OnePassProbe
from safetykit.adapters.sasa.settings import SASA
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.bench.skeleton import arguments, one_thread, run, say
from safetykit.export.base.own import write_base
from safetykit.export.pipeline.export import export_onnx
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.evaluation.evaluate import Decision, tabulate
from safetykit.toolkit.model.second_pass import SecondPass
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.workbench import refusal_of

METRICS = ("attack_success", "over_refusal")


def adapters(vlm: VLM, records: Sequence[Record]) -> dict[str, Adapter]:
    """One adapter per method, fitted with its defaults."""
    refusal = refusal_of(vlm, [record for record in records if record.split == "fit"])
    source = SecondPass(vlm, batch_size=64)
    return {
        "SASA": SASA().fit(source, records, refusal),
        "one-pass probe": OnePassProbe().fit(source, records, refusal),
        "VLM-Guard, whitened gate": VLMGuard(gate="whitened").fit(vlm, records),
    }


def share(decisions: Sequence[Decision], metric: str) -> float:
    """Of all records."""
    return next(row for row in tabulate(decisions) if row.group == "all").metrics[metric].rate


def measure(vlm: VLM, adapter: Adapter, base: Path, out: Path, test: list[Record], again: list[Record] | None) -> Any:
    """Export, and count what changed on the way from fp32 PyTorch."""
    made = export_onnx(
        vlm,
        [adapter],
        out,
        precision="int4",
        base_onnx=base,
        records=[*test, *(again or ())],
        recalibrate=bool(again),
        max_flips=1,
        overwrite=True,
    )
    ours, theirs = made.decisions
    opened = [flip for flip in made.parity.flips if flip.what != "outcome"]
    return {
        "flips": len({flip.id for flip in made.parity.flips}),
        "opened": sum(flip.onnx == "open" for flip in opened),
        "closed": sum(flip.onnx == "closed" for flip in opened),
        "fp32": {metric: share(ours, metric) for metric in METRICS},
        "int4": {metric: share(theirs, metric) for metric in METRICS},
        "recalibrated": [change.model_dump(mode="json") for change in made.manifest.recalibrated],
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--records", type=int, default=200, help="of the test split")
    options = parser.parse_args(given)
    one_thread()
    torch.set_flush_denormal(True)
    options.out.mkdir(parents=True, exist_ok=True)
    vlm = VLM.from_pretrained(model_path("reference:mild"))
    records = load_records(data_path("reference"))
    seen = [record for record in records if record.split != "test"]
    test = subset([record for record in records if record.split == "test"], options.records)
    calibration = [record for record in records if record.split == "calibration"]
    base = options.out / "base"
    if not base.is_dir():
        base.mkdir()
        write_base(vlm, base, "int4", say)
    found: dict[str, Any] = {"records": len(test), "arms": {}}
    lines = []
    for name, adapter in adapters(vlm, seen).items():
        for words, again in (("fitted", None), ("set again", calibration)):
            say(f"{name}, thresholds {words}")
            item = measure(vlm, adapter, base, options.out / "export", test, again)
            found["arms"][f"{name}, {words}"] = item
            shares = [f"{100 * item[side][metric]:.1f} %" for metric in METRICS for side in ("fp32", "int4")]
            lines.append([name, words, *map(str, (item["flips"], item["opened"], item["closed"])), *shares])
    write_atomic(options.out / "recalibrate.json", canonical_json(found))
    heads = ["", "thresholds", "flipped", "opened", "closed", "attack, fp32", "int4", "over-refusal, fp32", "int4"]
    rows = ["| " + " | ".join(row) + " |" for row in (heads, ["---", "---", *["---:"] * 7], *lines)]
    text = f"Decisions of int4 exports against fp32 PyTorch, {len(test)} test records of `reference:mild`.\n\n"
    write_atomic(options.out / "recalibrate.md", (text + "\n".join(rows) + "\n").encode())


if __name__ == "__main__":
    run(main)
