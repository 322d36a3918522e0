"""A corrector and a detector in one export: TGA's ``lora`` with SASA fitted on the model that it made.

    python bench/stack.py -o OUT [--checkpoint mild]

Trains TGA as ``bench/tga.py`` does (an adapter that stands in OUT is read back), fits SASA with it applied, exports
both together, checks parity and counts what the exported model answers on the test split. Writes OUT/stack.json and
OUT/stack.md; an interrupted run goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.stack import describe_corrector
from safetykit.adapters.sasa.settings import SASA
from safetykit.bench import skeleton
from safetykit.bench.tga import ARMS, trained
from safetykit.bench.vlm_guard import table
from safetykit.export.pipeline.export import export_onnx
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.evaluation.evaluate import tabulate
from safetykit.toolkit.model.second_pass import SecondPass
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.workbench import refusal_of


def stacked(vlm: VLM, corrector: Adapter) -> Adapter:
    """SASA for the model as ``corrector`` makes it."""
    records = load_records(data_path("reference"), ["fit", "calibration"])
    refusal = refusal_of(vlm, [record for record in records if record.split == "fit"])
    with vlm.applied(corrector):
        return SASA().fit(
            SecondPass(vlm, batch_size=64), records, refusal, corrected_by=[describe_corrector(corrector)]
        )


def measure(vlm: VLM, adapters: list[Adapter], out: Path) -> dict[str, Any]:
    """Export the stack and evaluate the export."""
    test = load_records(data_path("reference"), ["test"])
    result = export_onnx(vlm, adapters, out, records=test, overwrite=True)
    parity = result.parity
    return {
        "parity": skeleton.parity_figures(parity),
        "rows": skeleton.rows_by_group(tabulate(result.decisions[1])),
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = skeleton.arguments(__doc__)
    skeleton.results_folder(parser)
    options = parser.parse_args(given)
    skeleton.one_thread()
    torch.set_flush_denormal(True)
    path = options.out / "stack.json"
    results: dict[str, Any] = skeleton.read_results(path)
    for checkpoint in options.checkpoint or skeleton.CHECKPOINTS:
        vlm = VLM.from_pretrained(model_path(f"reference:{checkpoint}"))
        if results.get(checkpoint, {}).get("fingerprint") == vlm.fingerprint:
            continue
        skeleton.say(f"{checkpoint}: TGA")
        corrector = trained(vlm, ARMS["lora"], options.out / f"{checkpoint}-lora", checkpoint)
        skeleton.say(f"{checkpoint}: SASA")
        detector = stacked(vlm, corrector)
        skeleton.say(f"{checkpoint}: export")
        found = measure(vlm, [corrector, detector], options.out / f"{checkpoint}-stack")
        results[checkpoint] = {"fingerprint": vlm.fingerprint, "variants": {"TGA + SASA": found}}
        skeleton.write_results(path, results)
    text = table({checkpoint: found["variants"] for checkpoint, found in results.items()})
    skeleton.write_table(options.out / "stack.md", text)


if __name__ == "__main__":
    skeleton.run(main)
