"""CARE on the reference VLM: every variant and fusion, both checkpoints, swept on calibration, measured on test.

    python bench/care.py -o OUT

For each checkpoint: sweep on the calibration split; then for the best setting of each variant and fusion export, check
parity, and evaluate the *exported* model on the test split under ONNX Runtime, beside the unmodified export and
VLM-Guard's setting of the demo. Ablations of the best setting of all: one modality only; and, instead of the layers
that the sweep chose, as many from the causal map of `safetykit diagnose` and as many drawn at random. Writes
OUT/care.json and OUT/care.md. An interrupted run goes on where it was.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.care.settings import CARE, Fusion
from safetykit.adapters.care.sweep import CareSolver
from safetykit.adapters.registry import get_method
from safetykit.adapters.statistics.choices import SubspaceVariant as Variant
from safetykit.bench import skeleton
from safetykit.bench.vlm_guard import table
from safetykit.export.base.own import export_base
from safetykit.export.commands.demo_loop import SETTINGS
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.diagnosis import ChannelMap, diagnose
from safetykit.toolkit.evaluation.evaluate import evaluate, tabulate
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.sweep.run import run_sweep
from safetykit.toolkit.sweep.trials import Sweep
from safetykit.toolkit.workbench import Workbench

SEED = 0  # of the layers drawn at random


def sweep_of(checkpoint: str, vlm: VLM, records: list[Record], folder: Path) -> Sweep:
    """One sweep over all variants; an interrupted one goes on, a finished one is read back."""
    done = folder / f"{checkpoint}-sweep.json"
    if done.is_file() and (kept := json.loads(done.read_text()))["fingerprint"] == vlm.fingerprint:
        return Sweep.from_table(kept["sweep"], CARE)
    skeleton.say(f"{checkpoint}: sweep")

    def progress(number: int, total: int) -> None:
        if number % 20 == 0:
            skeleton.say(f"{checkpoint}: {number} of {total} settings")

    sweep = run_sweep(
        get_method("care"),
        Workbench(vlm, records),
        journal_path=folder / f"{checkpoint}.sweep.jsonl",
        progress=progress,
    ).sweep
    write_atomic(done, canonical_json({"fingerprint": vlm.fingerprint, "sweep": sweep.table()}))
    return sweep


def map_of(vlm: VLM, records: list[Record], folder: Path) -> ChannelMap:
    """The causal map of the fit split; read back if it was made before."""
    if folder.is_dir() and (kept := ChannelMap.load(folder)).base.fingerprint == vlm.fingerprint:
        return kept
    found = diagnose(vlm, [record for record in records if record.split == "fit"], say=skeleton.say)
    found.save(folder, overwrite=True)
    return found


def settings(sweep: Sweep, channels: ChannelMap, depth: int) -> Iterator[tuple[str, CARE]]:
    """The best of each variant and fusion, and the ablations, by name."""
    for variant in get_args(Variant):
        for fusion in get_args(Fusion):
            try:
                yield f"{variant} {fusion}", sweep.best_of(variant=variant, fusion=fusion).setting
            except ValueError:  # never tried: its kind was far from the best
                continue
    best: CARE = sweep.best.setting
    assert best.layers is not None
    for modality in ("visual", "textual"):
        yield f"best, {modality} only", best.but(modalities=modality)
    visual, textual = (channels.layers_for(name, len(best.layers)) for name in ("visual", "textual"))
    yield "best, layers of the causal map", best.but(layers=visual, textual_layers=textual)
    drawn = tuple(sorted(random.Random(SEED).sample(range(depth), len(best.layers))))
    yield "best, layers drawn at random", best.but(layers=drawn)


def subspaces(attached: Any) -> dict[str, Any]:
    """Per site and modality the largest λ, the directions kept and the gain within them."""
    return {
        f"{entry['site']} {name}": {
            "largest": entry[name]["eigenvalues"][0],
            "rank": entry[name]["rank"],
            "gain": entry[name]["gain"],
        }
        for entry in attached["layers"].values()
        for name in ("visual", "textual")
        if name in entry
    }


def measure(setting: dict[str, Any], adapter: Adapter, vlm: VLM, base: Path, out: Path) -> dict[str, Any]:
    """Export one adapter and evaluate the export; the export itself is not kept."""
    test = load_records(data_path("reference"), ["test"])
    result = export_onnx(vlm, [adapter], out, base_onnx=base, records=test, overwrite=True)
    shutil.rmtree(out)
    return {
        "setting": setting,
        "subspaces": subspaces(adapter.attachments["care"]) if "care" in adapter.attachments else None,
        "parity": skeleton.parity_figures(result.parity),
        "rows": skeleton.rows_by_group(tabulate(result.decisions[1])),
    }


def main(given: Sequence[str] | None = None) -> None:
    parser = skeleton.arguments(__doc__)
    skeleton.results_folder(parser)
    options = parser.parse_args(given)
    skeleton.one_thread()
    path = options.out / "care.json"
    results: dict[str, Any] = skeleton.read_results(path)
    test = load_records(data_path("reference"), ["test"])
    fitted = load_records(data_path("reference"), ["fit", "calibration"])
    for checkpoint in options.checkpoint or skeleton.CHECKPOINTS:
        vlm = VLM.from_pretrained(model_path(f"reference:{checkpoint}"))
        if results.get(checkpoint, {}).get("fingerprint") != vlm.fingerprint:
            results[checkpoint] = {"fingerprint": vlm.fingerprint, "variants": {}}
        found = results[checkpoint]["variants"]
        sweep = sweep_of(checkpoint, vlm, fitted, options.out)
        results[checkpoint]["sweep"] = sweep.table()
        base = options.out / f"{checkpoint}-base"
        if "undefended" not in found:
            export_base(vlm, base, overwrite=True)
            undefended = evaluate(OnnxVLM.from_pretrained(base), test, name="base")
            found["undefended"] = {"rows": skeleton.rows_by_group(undefended.rows)}
        channels = map_of(vlm, fitted, options.out / f"{checkpoint}-map")
        solver = CareSolver(Workbench(vlm, fitted))
        guard = SETTINGS[checkpoint]
        arms = [
            (name, care.values(), lambda care=care, solver=solver: solver(care))
            for name, care in settings(sweep, channels, vlm.base.n_layers)
        ]
        arms.append(("VLM-Guard", guard.values(), lambda guard=guard, vlm=vlm: guard.fit(vlm, fitted)))
        for name, setting, make in arms:
            if name not in found:
                skeleton.say(f"{checkpoint}: exporting {name}")
                found[name] = measure(setting, make(), vlm, base, options.out / f"{checkpoint}-export")
                skeleton.write_results(path, results)
    text = table({checkpoint: found["variants"] for checkpoint, found in results.items()})
    skeleton.write_table(options.out / "care.md", text)


if __name__ == "__main__":
    skeleton.run(main)
