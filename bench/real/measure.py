"""All arms on the real VLM: fitted, exported, and measured through the exported ONNX models.

    python bench/real/measure.py WORK [--arms undefended sasa …] [--precision fp16] [--threads 2]

WORK holds ``packages`` (fetch.py), ``model`` (tune.py) and ``align/heldout.jsonl`` (align.py). Per arm: fit, export
(with parity over some records), the answers of the PyTorch model and of the *export* to all test records with the
decisions that flipped between them, attack success and over-refusal by both judges, names given to pictures against a
blank one, perplexity, and latency over the unmodified export with an A/A control. Writes one JSON file per arm into
``-o`` (bench/real/results). What is finished is skipped, and an interrupted arm goes on where it was.

With ``--precision`` an arm is exported at that precision too, and its decisions are compared with those in fp32; an
export whose decisions flip more often than the precision allows is measured all the same, and said to be refused. With
``--recalibrate`` thresholds are set again on its graphs.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from captions import ASKED
from fetch import say
from figures import between_judges, detector_auroc, rows
from judge import MAX_TOKENS, STATES, Judge
from methods import ARMS, BATCH, SYSTEM_PROMPT, Lab
from neutral import perplexity
from objects import objects
from PIL import Image
from redteam import SIZE, TEST_SETS, UNSEEN_SETS, Pictures, slug, write

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import atomic_folder, write_atomic
from safetykit.adapters.artifact.manifest import canonical_json, describe_data
from safetykit.adapters.errors import SafetykitError, UsageError
from safetykit.export.base.own import export_base
from safetykit.export.base.quantise import quantise_decoder
from safetykit.export.document.latency import measure_latency
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.report import Flip, ParityReport, find_flips
from safetykit.export.parity.tolerances import TOLERANCES
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import CPU
from safetykit.export.surgery.adapt import copy_base
from safetykit.toolkit.data.journal import Journal
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.evaluation.evaluate import Decision, Generator, Prompted, Rate, decide
from safetykit.toolkit.evaluation.judge import normalise
from safetykit.toolkit.model.requests import Generation, Request
from safetykit.toolkit.model.vlm import VLM

RECALIBRATED = "-recalibrated"
PARITY_RECORDS = 24  # answered during the export; its own decisions gate it


class _NoModel:
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
        self.lab = Lab(self.vlm, self.records, self.work, self.folder, options.steps)
        self.test = [record for record in self.records if record.split == "test"]
        if options.limit:
            self.test = subset(self.test, options.limit)

    def _data(self) -> Path:
        if self.options.data:
            return self.options.data
        folder, prompts = self.work / "redteam", self.work / "align/heldout.jsonl"
        if not (folder / "test.jsonl").is_file():
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
        return Journal(self.folder / "answers" / f"{name}.jsonl", [*self.identity, fitted])

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
        journal = Journal(self.folder / "answers/names.jsonl", self.identity)
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


def measure(bench: Bench, arm: str) -> dict[str, Any]:
    """Everything about one arm in fp32."""
    adapters = bench.lab.adapters(arm)
    with bench.vlm.applied(*adapters):
        in_torch = bench.answers(_wrapped(bench.vlm, arm), f"{arm}-pytorch", adapters)
    folder, parity = bench.exported(arm, adapters, "fp32")
    onnx_vlm = OnnxVLM.from_pretrained(folder)
    theirs = _wrapped(onnx_vlm, arm)
    in_onnx = bench.answers(theirs, f"{arm}-onnx", adapters)
    flips = find_flips(in_torch, in_onnx)
    found: dict[str, Any] = {
        "adapters": [_described(adapter) for adapter in adapters],
        "parity": parity,
        "flips": _counted(flips, len(in_onnx)),
        "same_text": sum(a.text == b.text for a, b in zip(in_torch, in_onnx, strict=True)),
        "rows": rows(in_onnx, bench.judge, bench.perceived),
        "judges": between_judges(in_onnx, bench.judge) if bench.judge else None,
        "detector_auroc": detector_auroc(in_onnx),
    }
    if not bench.options.data:
        say(f"{arm}: names and perplexity")
        found["names"] = bench.named(theirs)
    found["perplexity"] = perplexity(onnx_vlm)
    if adapters and not bench.options.no_latency:
        say(f"{arm}: latency")
        found["latency"] = latency(bench, onnx_vlm)
    if adapters and not bench.options.keep:
        shutil.rmtree(folder)
    return found


def measure_precision(bench: Bench, arm: str, precision: str) -> dict[str, Any]:
    """An arm at another precision: parity, and decisions against those of the fp32 export."""
    adapters = bench.lab.adapters(arm)
    folder, parity = bench.exported(arm, adapters, precision)
    onnx_vlm = OnnxVLM.from_pretrained(folder)
    some = subset(bench.test, bench.options.precision_records)
    name = f"{arm}-onnx-{precision}-{len(some)}{RECALIBRATED if bench.options.recalibrate else ''}"
    at_precision = bench.answers(_wrapped(onnx_vlm, arm), name, adapters, some)
    asked = {record.id for record in some}
    in_fp32 = bench.answers(_wrapped(_NoModel(), arm), f"{arm}-onnx", adapters)
    in_fp32 = [decision for decision in in_fp32 if decision.id in asked]
    flips = find_flips(in_fp32, at_precision)
    found = {
        "parity": parity,
        "flips": _counted(flips, len(at_precision)),
        "rows": rows(at_precision, bench.judge, bench.perceived),
        "rows_fp32": rows(in_fp32, bench.judge, bench.perceived),
        "detector_auroc": detector_auroc(at_precision),
        "perplexity": perplexity(onnx_vlm),
    }
    if adapters and not bench.options.keep:
        shutil.rmtree(folder)
    return found


def latency(bench: Bench, baked: OnnxVLM) -> dict[str, Any]:
    """Ratios over the unmodified export, batch 1 with a picture."""
    base = bench.base("fp32")
    record = next(record for record in bench.test if record.image)
    measured = measure_latency(
        baked,
        OnnxVLM.from_pretrained(base, verify=False),
        [Request(record.prompt, record.picture())],
        control=OnnxVLM.from_pretrained(base, verify=False),
        providers=CPU,
        rounds=bench.options.rounds,
        decode_steps=8,
    )
    return measured.model_dump(mode="json")


def _wrapped(model: Generator, arm: str) -> Generator:
    return Prompted(model, SYSTEM_PROMPT) if arm == "system-prompt" else model


def _summarised(parity: ParityReport) -> dict[str, Any]:
    """Figures of a report that tolerated flips, and the verdict without that."""
    (flips,) = (check for check in parity.checks if check.kind == "decisions")
    allowed = math.floor(TOLERANCES[parity.precision].flips * flips.count)
    logits = [check for check in parity.checks if check.kind == "logits"]
    figures = {"passed": flips.error <= allowed, "logits": parity.worst("logits"), "checks": len(parity.checks)}
    if not figures["passed"]:
        figures["reason"] = f"{flips.error:.0f} of {flips.count} decisions flipped, limit {allowed}"
    return figures | {"limit": max((check.limit for check in logits), default=0.0)}


def _counted(flips: Sequence[Flip], n: int) -> dict[str, Any]:
    found = [{"id": flip.id, "what": flip.what, "from": flip.pytorch, "to": flip.onnx} for flip in flips]
    return {"records": len({flip.id for flip in flips}), "n": n, "list": found}


def _described(adapter: Adapter) -> dict[str, Any]:
    info, attached = adapter.info, adapter.attachments
    found: dict[str, Any] = {
        "method": info.method,
        "variant": info.variant,
        "hyperparameters": dict(info.hyperparameters),
    }
    if "sweep" in attached:
        sweep = attached["sweep"]
        kept = {key: sweep[key] for key in ("undefended", "best", "within_cost")}
        found["sweep"] = {"tried": len(sweep["trials"]), **kept}
    if "training" in attached:
        found["training"] = {key: attached["training"][key] for key in ("seconds", "parameters")}
    if "alignment" in attached:
        found["alignment"] = attached["alignment"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "int4"), default="fp32", help="other than fp32: compare with fp32"
    )
    parser.add_argument("--recalibrate", action="store_true", help="set thresholds again on the graphs")
    parser.add_argument("--model", type=Path, help="checkpoint; WORK/model by default")
    parser.add_argument("--data", type=Path, help="other records than the red-team set")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps of TGA")
    parser.add_argument("--rounds", type=int, default=15, help="of the latency measurement")
    parser.add_argument("--limit", type=int, help="test records; all by default")
    parser.add_argument(
        "--precision-records", type=int, default=160, help="test records at a precision other than fp32"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-judge", action="store_true", help="a quick trial: leave the second judge out")
    parser.add_argument("--no-latency", action="store_true", help="a quick trial: leave latency out")
    parser.add_argument("--keep", action="store_true", help="keep the exports")
    options = parser.parse_args()
    if options.recalibrate and options.precision == "fp32":
        parser.error("--recalibrate is for a --precision other than fp32")
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    bench = Bench(options)
    options.out.mkdir(parents=True, exist_ok=True)
    for arm in options.arms:
        suffix = "" if options.precision == "fp32" else f"-{options.precision}"
        suffix += RECALIBRATED if options.recalibrate else ""
        path = options.out / f"{arm}{suffix}.json"
        if path.is_file() and json.loads(path.read_text())["identity"] == bench.identity:
            say(f"{arm}: done before")
            continue
        say(f"{arm}: starting")
        start = time.monotonic()
        try:
            found = measure(bench, arm) if not suffix else measure_precision(bench, arm, options.precision)
        except SafetykitError as error:
            say(f"{arm}: failed. {error}")
            continue
        found |= {"arm": arm, "identity": bench.identity, "seconds": round(time.monotonic() - start)}
        write_atomic(path, canonical_json(found))
        say(f"{arm}: {found['seconds']} s; attack and over-refusal {json.dumps(_brief(found))}")


def _brief(found: dict[str, Any]) -> dict[str, Any]:
    rows = found.get("rows", {})
    return {name: {key: round(rate["rate"], 3) for key, rate in row.items()} for name, row in rows.items()}


if __name__ == "__main__":
    main()
