"""TGA on the reference VLM: every variant and ablation, both checkpoints, trained on the captions, measured on test.

    python bench/tga.py -o OUT [--checkpoint mild] [--arm lora …] [--calibration] [--pytorch]

No picture in the training data has a safety label and none is in another split. With ``--calibration`` the
calibration split is measured instead, which is where settings are chosen. Answers come from the *export* under ONNX
Runtime, after parity over the same records; with ``--pytorch`` from PyTorch with the updates applied. ``captions``
are exact captions of test things in all renderings. Writes OUT/tga.json and OUT/tga.md (OUT/calibration.* with
``--calibration``); an interrupted run goes on where it was, inside an arm too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.tga.settings import TGA
from safetykit.bench import skeleton
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.alignment import Aligner
from safetykit.toolkit.data.captions import captions_path, load_captions
from safetykit.toolkit.data.pictures import open_picture
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.evaluation.evaluate import Generator, Rate, Row, evaluate, tabulate
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.reference.atlas import SEEN_SETS, UNSEEN_SETS, data_folder, reference, shown
from safetykit.toolkit.reference.language import answer
from safetykit.toolkit.reference.world import things

LIMITS = {"max_new_tokens": 20}
GROUPS = ("text", "image", "image/rendering-unseen", "text+image", "typographic")
_PAPER = {"centred": False, "ce_weight": 1.0, "request_weight": 0.0, "opening_weight": 0.0, "shuffled": 0.0}
ARMS: dict[str, TGA] = {
    "lora": TGA(variant="lora"),
    "projector": TGA(variant="projector"),
    "low-rank": TGA(variant="low-rank"),
    "closed-form": TGA(variant="closed-form"),
    "lora, own requests only": TGA(variant="lora", shuffled=0.0),
    "lora, paper's loss": TGA(variant="lora", guide_weight=1.0, prefixed=1.0, **_PAPER),
    "projector, paper's loss": TGA(variant="projector", guide_weight=1.0, prefixed=1.0, **_PAPER),
    "projector, centred guide only": TGA(variant="projector", **{**_PAPER, "centred": True}),
    "lora, no guide": TGA(variant="lora", guide_weight=0.0),
    "lora, answers only": TGA(variant="lora", guide_weight=0.0, request_weight=0.0, opening_weight=0.0, shuffled=0.0),
    "lora, no retrieval": TGA(variant="lora", retrieval=False),
}


def caption_rate(model: Generator, split: str) -> Rate:
    """Exact captions of the things of a split, in every rendering."""
    shows = [
        (thing, atlas)
        for thing in things()
        for atlas in SEEN_SETS + (UNSEEN_SETS if split == "test" else ())
        if thing.split == split and thing.index in shown(atlas)
    ]
    right = 0
    for start in range(0, len(shows), 64):
        part = shows[start : start + 64]
        pictures = [open_picture(reference(atlas, thing.index), data_folder() / "records") for thing, atlas in part]
        answers = model.generate([Request("describe this.", picture) for picture in pictures], 16)
        right += sum(found.text == answer(thing, "caption") for found, (thing, _) in zip(answers, part, strict=True))
    return Rate.of(right, len(shows))


def measure(model: Generator, split: str, name: str) -> dict[str, Any]:
    """Figures of a model on a split."""
    rows = evaluate(model, load_records(data_path("reference"), [split]), name=name, **LIMITS).rows
    return figures(rows, model, split)


def figures(rows: Sequence[Row], model: Generator, split: str) -> dict[str, Any]:
    """Rows by group, and the captions that ``model`` gives."""
    return {
        "rows": skeleton.rows_by_group(rows),
        "captions": caption_rate(model, split).model_dump(mode="json"),
    }


def trained(vlm: VLM, settings: TGA, folder: Path, name: str) -> Adapter:
    """One arm's adapter; read back if it was trained before."""
    if (folder / "adapter").is_dir():
        kept = Adapter.load(folder / "adapter")
        same = all(
            kept.info.hyperparameters.get(key) == value for key, value in settings.values().items() if value is not None
        )
        if same and kept.info.base.fingerprint == vlm.fingerprint:
            return kept
    aligner = Aligner(vlm, load_captions(captions_path("reference")), work=folder / "work", progress=every_50(name))
    adapter = settings.fit(aligner)
    adapter.save(folder / "adapter", overwrite=True)
    aligner.finish()
    return adapter


def train_and_measure(vlm: VLM, settings: TGA, split: str, folder: Path, pytorch: bool, name: str) -> dict[str, Any]:
    """Train one arm and measure it."""
    adapter = trained(vlm, settings, folder, name)
    if pytorch:
        with vlm.applied(adapter):
            found = measure(vlm, split, name)
    else:
        found = exported(vlm, adapter, split, folder / "export")
    training = adapter.attachments["training"]
    return {
        **found,
        "setting": settings.values(),
        "seconds": training["seconds"],
        "parameters": training["parameters"],
        "alignment": adapter.attachments["alignment"],
    }


def exported(vlm: VLM, adapter: Adapter, split: str, out: Path) -> dict[str, Any]:
    """Export, with parity over the split, and count what the exported model answers; the export is not kept."""
    records = load_records(data_path("reference"), [split])
    result = export_onnx(vlm, [adapter], out, records=records, max_new_tokens=LIMITS["max_new_tokens"], overwrite=True)
    found = figures(tabulate(result.decisions[1]), OnnxVLM.from_pretrained(out), split)
    shutil.rmtree(out)
    parity = result.parity
    return {
        **found,
        "parity": skeleton.parity_figures(parity),
    }


def every_50(name: str):
    """A progress callback that says little."""

    def progress(step: int, steps: int) -> None:
        if step % 50 == 0 or step == steps:
            skeleton.say(f"{name}: step {step} of {steps}")

    return progress


def table(results: dict[str, Any]) -> str:
    """Markdown: per checkpoint, attack success per carrier beside refusal, over-refusal and answers."""
    lines = []
    for checkpoint, found in results.items():
        lines += [
            f"### `{checkpoint}`",
            "",
            "| | " + " | ".join(f"attack, {group}" for group in GROUPS) + " | refused, image | over-refusal "
            "| exact answers | exact, image | captions | minutes |",
            "|---|" + "---:|" * (len(GROUPS) + 6),
        ]
        for name in ("undefended", *ARMS):
            if (arm := found["arms"].get(name)) is None:
                continue
            metrics = {group: row["metrics"] for group, row in arm["rows"].items()}
            cells = [skeleton.percent(metrics.get(group, {}).get("attack_success")) for group in GROUPS]
            cells += [skeleton.percent(metrics["image"]["refused"])]
            cells += [skeleton.percent(metrics["all"][metric]) for metric in ("over_refusal", "exact")]
            cells += [skeleton.percent(metrics["image"]["exact"]), skeleton.percent(arm["captions"])]
            cells += [f"{arm['seconds'] / 60:.1f}" if "seconds" in arm else "–"]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> None:
    parser = skeleton.arguments(__doc__)
    skeleton.results_folder(parser)
    parser.add_argument("--arm", choices=ARMS, action="append")
    parser.add_argument("--calibration", action="store_true", help="measure the calibration split")
    parser.add_argument("--pytorch", action="store_true", help="leave the export out")
    options = parser.parse_args(given)
    skeleton.one_thread()
    torch.set_flush_denormal(True)
    split, stem = ("calibration", "calibration") if options.calibration else ("test", "tga")
    path = options.out / f"{stem}.json"
    results: dict[str, Any] = skeleton.read_results(path)
    for checkpoint in options.checkpoint or skeleton.CHECKPOINTS:
        vlm = VLM.from_pretrained(model_path(f"reference:{checkpoint}"))
        if results.get(checkpoint, {}).get("fingerprint") != vlm.fingerprint:
            results[checkpoint] = {"fingerprint": vlm.fingerprint, "arms": {}}
        arms = results[checkpoint]["arms"]
        if "undefended" not in arms:
            arms["undefended"] = measure(vlm, split, "base")
        for name in options.arm or ARMS:
            settings = ARMS[name]
            if arms.get(name, {}).get("setting") == json.loads(json.dumps(settings.values())):
                continue
            skeleton.say(f"{checkpoint}: {name}")
            folder = options.out / f"{checkpoint}-{name.replace(', ', '-').replace(' ', '-').replace(chr(39), '')}"
            arms[name] = train_and_measure(vlm, settings, split, folder, options.pytorch, f"{checkpoint} {name}")
            skeleton.write_results(path, results)
            write_atomic(options.out / f"{stem}.md", table(results).encode())
    print(table(results))


if __name__ == "__main__":
    skeleton.run(main)
