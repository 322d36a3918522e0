"""The workplace of the real VLM's measurements: the model, its records, kept answers and kept exports.

:mod:`measure` runs the arms on it. Everything that takes long is kept below WORK/measure and found again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from align import write_heldout
from captions import ASKED
from fetch import say
from judge import MAX_TOKENS, STATES, Judge
from methods import BATCH, Lab
from objects import objects
from PIL import Image
from prompts import all_prompts
from redteam import SIZE, TEST_SETS, UNSEEN_SETS, Pictures, slug, write

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json, describe_data
from safetykit.adapters.artifact.output import atomic_folder
from safetykit.adapters.errors import UsageError
from safetykit.export.base.own import export_base, quantise_decoder
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.report import ParityReport
from safetykit.export.parity.tolerances import TOLERANCES
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.surgery.adapt import copy_base
from safetykit.toolkit.data.journal import Journal
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.evaluation.evaluate import Decision, Generator, Rate, decide
from safetykit.toolkit.evaluation.judge import normalise
from safetykit.toolkit.model.requests import Generation, Request
from safetykit.toolkit.model.vlm import VLM

RECALIBRATED = "-recalibrated"
PARITY_RECORDS = 24  # answered during the export; its own decisions gate it
TGA_STEPS = 80  # of its optimizer


class NoModel:
    """Stands where all answers are kept already."""

    def generate(self, requests: Sequence[Request], max_new_tokens: int = 32) -> list[Generation]:
        raise UsageError("The arm's fp32 answers are not complete.", "Measure it in fp32 first.")


class Bench:
    """One model, its records and everything that arms share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.work, self.out = options, options.work, options.out
        self.vlm = VLM.from_pretrained(options.model or self.work / "model")
        self.records = load_records(self._data())
        self.folder = self.work / "measure" / self.vlm.fingerprint[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lab = Lab(self.vlm, self.records, self.work, self.folder, TGA_STEPS)
        self.test = [record for record in self.records if record.split == "test"]
        if options.limit:
            self.test = subset(self.test, options.limit)

    def _data(self) -> Path:
        if self.options.data:
            return self.options.data
        folder, prompts = self.work / "redteam", self.work / "align/heldout.jsonl"
        if not (folder / "test.jsonl").is_file():
            if not prompts.is_file():
                prompts.parent.mkdir(exist_ok=True)
                write_heldout(all_prompts(self.work / "packages"), prompts)
            write(self.work / "packages", folder, prompts)
        return folder

    @cached_property
    def judge(self) -> Judge | None:
        return None if self.options.no_judge else Judge(self.work / "packages", self.work / STATES)

    @cached_property
    def identity(self) -> list[Any]:
        """What every figure depends on."""
        return [self.vlm.fingerprint, describe_data(self.test).sha256, MAX_TOKENS]

    @cache  # noqa: B019  one instance a run
    def base(self, precision: str) -> Path:
        """The unmodified export at a precision."""
        folder = self.folder / f"base-{precision}"
        if folder.is_dir():
            return folder
        if precision == "int4":
            full = self.base("fp32")
            say("quantising the base to int4")
            with atomic_folder(folder) as made:
                manifest = read_manifest(full)
                copy_base(full, made, manifest)
                quantise_decoder(made, manifest)
            return folder
        say(f"exporting the base, {precision}")
        export_base(self.vlm, folder, precision)
        return folder

    def journal(self, name: str, adapters: Sequence[Adapter]) -> Journal:
        """Where answers of a model with these adapters are kept."""
        fitted = [adapter.info.model_dump(mode="json") for adapter in adapters]
        return Journal(
            self.folder / "answers" / f"{name}.jsonl", {"model and records": self.identity, "adapters": fitted}
        )

    def answers(
        self, model: Generator, name: str, adapters: Sequence[Adapter], records: Sequence[Record] | None = None
    ) -> list[Decision]:
        """What a model answers to records, by default those of the test split; kept batch by batch."""
        start = time.monotonic()

        def progress(done: int, total: int) -> None:
            say(f"{name}: {done} of {total} records, {time.monotonic() - start:.0f} s")

        return decide(
            model,
            self.test if records is None else records,
            max_new_tokens=MAX_TOKENS,
            batch_size=BATCH,
            progress=progress,
            journal=self.journal(name, adapters),
        )

    def exported(self, arm: str, adapters: Sequence[Adapter], precision: str) -> tuple[Path, dict[str, Any]]:
        """The arm's export, and what parity said; the base for an arm without adapters."""
        if not adapters:
            return self.base(precision), {}
        recalibrate = self.options.recalibrate
        folder = self.folder / "exports" / f"{arm}-{precision}{RECALIBRATED if recalibrate else ''}"
        kept = folder.parent / f"{folder.name}-parity.json"
        if not (folder.is_dir() and kept.is_file()):
            calibration = [one for one in self.records if one.split == "calibration"] if recalibrate else []
            result = export_onnx(
                self.vlm,
                adapters,
                folder,
                precision=precision,
                base_onnx=self.base(precision),
                records=[*subset(self.test, PARITY_RECORDS), *calibration],
                max_new_tokens=MAX_TOKENS,
                max_flips=None if precision == "fp32" else 1,
                recalibrate=recalibrate,
                overwrite=True,
                progress=say,
            )
            figures = _summarised(result.parity)
            figures["recalibrated"] = [one.model_dump(mode="json") for one in result.manifest.recalibrated]
            write_atomic(kept, canonical_json(figures))
        return folder, json.loads(kept.read_text())

    @cached_property
    def perceived(self) -> set[str]:
        """Ids of the pictured records whose object the unmodified model names."""
        if self.options.data:
            return set()
        names = {slug(one.name): one.name for one in objects()}
        pictured = [record for record in self.test if record.carrier == "image"]
        journal = Journal(self.folder / "answers/names.jsonl", {"model and records": self.identity})
        missing = {record.image: record for record in pictured if record.image not in journal.done}
        for start in range(0, len(missing), BATCH):
            batch = list(missing.values())[start : start + BATCH]
            requests = [Request(ASKED, record.picture()) for record in batch]
            for record, answer in zip(batch, self.vlm.generate(requests, 12), strict=True):
                journal.add(record.image, normalise(answer.text))
        return {record.id for record in pictured if names[Path(record.image).stem] in journal.done[record.image]}

    def named(self, model: Generator) -> dict[str, Any]:
        """Pictures of test objects that the model names, against what it says to a blank picture.

        ``blank`` counts the same names in its one answer to a blank picture, ``swapped`` those of another picture.
        """
        pictures = Pictures(self.work / "packages", self.work / "redteam/pictures")
        shows = [
            (one.name, file, name in UNSEEN_SETS)
            for one in objects()
            if one.split == "test"
            for name in (*TEST_SETS, *UNSEEN_SETS)
            if (file := pictures.emoji(one, name))
        ]
        opened = [Image.open(self.work / "redteam" / file).convert("RGB") for _, file, _ in shows]
        opened.append(Image.new("RGB", (SIZE, SIZE), "white"))
        texts: list[str] = []
        for start in range(0, len(opened), BATCH):
            requests = [Request(ASKED, picture) for picture in opened[start : start + BATCH]]
            texts += [normalise(answer.text) for answer in model.generate(requests, 12)]
        blank = texts.pop()
        half = len(texts) // 2

        def share(chosen: Sequence[int], said: Sequence[str]) -> dict[str, Any]:
            hits = sum(shows[at][0] in said[at] for at in chosen)
            return Rate.of(hits, len(chosen)).model_dump(mode="json")

        seen = [at for at, (*_, unseen) in enumerate(shows) if not unseen]
        unseen = [at for at, (*_, unseen) in enumerate(shows) if unseen]
        everything = range(len(shows))
        return {
            "seen renderings": share(seen, texts),
            "unseen rendering": share(unseen, texts),
            "blank": share(everything, [blank] * len(texts)),
            "swapped": share(everything, texts[half:] + texts[:half]),
        }


def _summarised(parity: ParityReport) -> dict[str, Any]:
    """Figures of a report that tolerated flips, and the verdict without that."""
    (flips,) = (check for check in parity.checks if check.kind == "decisions")
    allowed = math.floor(TOLERANCES[parity.precision].flips * flips.count)
    logits = [check for check in parity.checks if check.kind == "logits"]
    figures = {"passed": flips.error <= allowed, "logits": parity.worst("logits"), "checks": len(parity.checks)}
    if not figures["passed"]:
        figures["reason"] = f"{flips.error:.0f} of {flips.count} decisions flipped, limit {allowed}"
    return figures | {"limit": max((check.limit for check in logits), default=0.0)}
