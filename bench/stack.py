"""A corrector and a detector in one export: TGA's ``lora`` with SASA fitted on the model that it made.

    python bench/stack.py -o OUT [--checkpoint mild]

Trains TGA as ``bench/tga.py`` does (an adapter that stands in OUT is read back), fits SASA with it applied, exports
both together, checks parity and counts what the exported model answers on the test split. Writes OUT/stack.json and
OUT/stack.md; an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tga import ARMS, trained
from vlm_guard import CHECKPOINTS, say, table

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.artifact.stack import describe_corrector
from safetykit.adapters.sasa.settings import SASA
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
        "parity": {"passed": parity.passed, "logits": parity.worst("logits"), "flips": len(parity.flips)},
        "rows": {row.group: row.model_dump(mode="json") for row in tabulate(result.decisions[1])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--checkpoint", choices=CHECKPOINTS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)  # on a model this small, threads cost more than they give
    torch.set_flush_denormal(True)
    path = options.out / "stack.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for checkpoint in options.checkpoint or CHECKPOINTS:
        vlm = VLM.from_pretrained(model_path(f"reference:{checkpoint}"))
        if results.get(checkpoint, {}).get("fingerprint") == vlm.fingerprint:
            continue
        say(f"{checkpoint}: TGA")
        corrector = trained(vlm, ARMS["lora"], options.out / f"{checkpoint}-lora", checkpoint)
        say(f"{checkpoint}: SASA")
        detector = stacked(vlm, corrector)
        say(f"{checkpoint}: export")
        found = measure(vlm, [corrector, detector], options.out / f"{checkpoint}-stack")
        results[checkpoint] = {"fingerprint": vlm.fingerprint, "variants": {"TGA + SASA": found}}
        write_atomic(path, canonical_json(results))
    text = table({checkpoint: found["variants"] for checkpoint, found in results.items()})
    write_atomic(options.out / "stack.md", text.encode())
    print(text)


if __name__ == "__main__":
    main()
