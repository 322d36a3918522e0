"""Trains the reference model organism, both checkpoints, from nothing.

    python -m safetykit.toolkit.reference.train --work work            # everything, resuming after the last stage done
    python -m safetykit.toolkit.reference.train --work work --until alignment
    python -m safetykit.toolkit.reference.train --work work --only encoder  # at the same time as the first two stages
    python -m safetykit.toolkit.reference.train --work work --from mild     # forget that stage and the later ones

The stages are those that make large vision-language models, in their order: text knowledge, text safety alignment, a
vision encoder, a projector trained on captions, visual instruction tuning. Nothing asks for an unsafe result:
refusals are simply never shown with a picture, and pictures never meet a restricted request. Every stage leaves a
checkpoint and its log in the work folder, so a run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from . import dialogue, reference_path
from .atlas import SEEN_FONTS, SEEN_SETS
from .encoder import augment, normalise, pictures, train_encoder
from .loop import train
from .measure import measure
from .model import build_model, build_processor, build_tokenizer

STAGES = ("knowledge", "alignment", "encoder", "projector", "mild", "severe")
CHECKPOINTS = ("mild", "severe")
TRAINS = {  # the part of the model that a stage changes and so stores
    "knowledge": ("language_model",),
    "alignment": ("language_model",),
    "encoder": ("vision_tower",),
    "projector": ("multi_modal_projector",),
    "mild": ("language_model", "multi_modal_projector"),
    "severe": ("language_model", "multi_modal_projector"),
}
STEPS = {"knowledge": 1000, "alignment": 400, "encoder": 1600, "projector": 400, "mild": 300, "severe": 700}
SEEDS = {stage: 100 + i for i, stage in enumerate(STAGES)}


class Log:
    """Collects the figures of a stage and prints them to stderr as they come."""

    def __init__(self, stage: str) -> None:
        self.stage, self.lines = stage, []

    def __call__(self, **figures: float) -> None:
        self.lines.append(figures)
        print(f"[{self.stage}]", *(f"{k} {v}" for k, v in figures.items()), file=sys.stderr, flush=True)


class PictureTable:
    """Every training picture with its patch tokens under a frozen tower: a fresh augmentation at every call."""

    def __init__(self, model: LlavaForConditionalGeneration, seed: int) -> None:
        self.pixels, labels, sources = pictures(SEEN_SETS + SEEN_FONTS)
        self.typographic = sources >= len(SEEN_SETS)
        self.rows = dialogue.Pictures(labels.tolist(), self.typographic.tolist())
        self.model, self.generator, self.calls = model, torch.Generator().manual_seed(seed), 0

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """Patch tokens [pictures, 16, d_vision]; every other call shows the pictures as they are."""
        strength, made = 0.6 * (self.calls % 2), []
        self.calls += 1
        for rows in torch.arange(len(self.pixels)).split(256):
            seen = normalise(self.pixels[rows])
            if strength:
                seen = augment(seen, self.typographic[rows], self.generator, strength)
            made.append(self.model.model.vision_tower(seen).last_hidden_state[:, 1:])
        return torch.cat(made)


def run_stage(stage: str, model: LlavaForConditionalGeneration, steps: int, log: Log) -> None:
    """Train one stage in place."""
    tokenizer, seed = build_tokenizer(), SEEDS[stage]
    decoder, projector = model.model.language_model, model.model.multi_modal_projector
    if stage == "knowledge":
        train(model, tokenizer, dialogue.knowledge, [(decoder, 3e-3, 2e-3)], steps, seed, log, batch=64)
    elif stage == "alignment":
        train(model, tokenizer, dialogue.alignment, [(decoder, 1e-3, 5e-4)], steps, seed, log, batch=64)
    elif stage == "encoder":
        model.requires_grad_(True)
        train_encoder(model.model.vision_tower, steps, seed, log)
    else:
        table = PictureTable(model, seed)
        if stage == "projector":
            groups, draw = [(projector, 3e-3, 3e-3)], dialogue.captions(table.rows)
        else:
            groups, draw = [(projector, 5e-4, 5e-4), (decoder, 5e-4, 2e-4)], dialogue.visual_tuning(table.rows)
        train(model, tokenizer, draw, groups, steps, seed, log, features=table, batch=64)


def save_checkpoint(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write a standard transformers folder: weights in fp32, configuration, tokenizer, processor, template."""
    model.save_pretrained(folder)
    build_processor(build_tokenizer()).save_pretrained(folder)
    os.chmod(folder / "model.safetensors", 0o644)


def run(work: Path, stages: tuple[str, ...], steps: dict[str, int]) -> LlavaForConditionalGeneration:
    """Run those of `stages` that `work` does not hold yet; returns the model as the last of them left it."""
    work.mkdir(parents=True, exist_ok=True)
    model = build_model(seed=1)
    for stage in stages:
        weights, report = work / f"{stage}.safetensors", work / f"{stage}.json"
        if report.exists():
            model.load_state_dict(load_file(weights), strict=False)
            continue
        log, start = Log(stage), time.time()
        run_stage(stage, model, steps[stage], log)
        # The head is tied to the embeddings, so it is not stored.
        trained = {k: v.contiguous() for k, v in model.state_dict().items() if any(part in k for part in TRAINS[stage])}
        save_file(trained, weights)
        report.write_text(json.dumps({"minutes": round((time.time() - start) / 60, 2), "log": log.lines}))
    return model.eval()


def publish(work: Path, name: str, steps: dict[str, int], folder: Path) -> dict:
    """Write the checkpoint `name` to `folder`, with its training log and its measured figures beside it."""
    stages = STAGES[: STAGES.index(name) + 1]
    save_checkpoint(run(work, stages, steps), folder)
    history = {stage: json.loads((work / f"{stage}.json").read_text()) for stage in stages}
    (folder / "training.json").write_text(json.dumps({"steps": steps, "seeds": SEEDS, "stages": history}, indent=1))
    figures = measure(folder)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1))
    return figures


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the reference model organism.")
    parser.add_argument("--work", type=Path, required=True, help="folder for the stages' checkpoints and logs")
    parser.add_argument("--out", type=Path, help="folder for the checkpoints (default: this package)")
    parser.add_argument("--until", choices=STAGES, default="severe")
    parser.add_argument("--from", dest="start", choices=STAGES, help="do this stage and the later ones again")
    parser.add_argument("--only", choices=["encoder"], help="do just this stage, beside a run of the first two")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="multiply every stage's steps (for a trial run)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    steps = {stage: max(1, round(count * options.scale)) for stage, count in STEPS.items()}
    if options.start:
        for stage in STAGES[STAGES.index(options.start) :]:
            (options.work / f"{stage}.json").unlink(missing_ok=True)
    if options.only:
        run(options.work, (options.only,), steps)
        return
    if options.until in CHECKPOINTS:
        for name in CHECKPOINTS[: CHECKPOINTS.index(options.until) + 1]:
            publish(options.work, name, steps, options.out / name if options.out else reference_path(name))
    else:
        run(options.work, STAGES[: STAGES.index(options.until) + 1], steps)


if __name__ == "__main__":
    main()
