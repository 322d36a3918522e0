"""All arms on the real VLM: fitted, exported, and measured through the exported ONNX models.

    python bench/real/measure.py WORK [--arms undefended sasa …] [--precision fp16]

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
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from fetch import say
from figures import between_judges, detector_auroc, rows
from methods import ARMS, SYSTEM_PROMPT
from neutral import perplexity
from workplace import RECALIBRATED, Bench, NoModel

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.adapters.errors import SafetykitError
from safetykit.export.document.latency import measure_latency
from safetykit.export.parity.report import Flip, find_flips
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import CPU
from safetykit.toolkit.data.records import subset
from safetykit.toolkit.evaluation.evaluate import Generator, Prompted
from safetykit.toolkit.model.asking import request_of

PRECISION_RECORDS = 160  # of the test split, at a precision other than fp32
ROUNDS = 15  # of the latency measurement


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
    if adapters:
        shutil.rmtree(folder)
    return found


def measure_precision(bench: Bench, arm: str, precision: str) -> dict[str, Any]:
    """An arm at another precision: parity, and decisions against those of the fp32 export."""
    adapters = bench.lab.adapters(arm)
    folder, parity = bench.exported(arm, adapters, precision)
    onnx_vlm = OnnxVLM.from_pretrained(folder)
    some = subset(bench.test, PRECISION_RECORDS)
    name = f"{arm}-onnx-{precision}-{len(some)}{RECALIBRATED if bench.options.recalibrate else ''}"
    at_precision = bench.answers(_wrapped(onnx_vlm, arm), name, adapters, some)
    asked = {record.id for record in some}
    in_fp32 = bench.answers(_wrapped(NoModel(), arm), f"{arm}-onnx", adapters)
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
    if adapters:
        shutil.rmtree(folder)
    return found


def latency(bench: Bench, baked: OnnxVLM) -> dict[str, Any]:
    """Ratios over the unmodified export, batch 1 with a picture."""
    base = bench.base("fp32")
    record = next(record for record in bench.test if record.image)
    measured = measure_latency(
        baked,
        OnnxVLM.from_pretrained(base, verify=False),
        [request_of(record)],
        control=OnnxVLM.from_pretrained(base, verify=False),
        providers=CPU,
        rounds=ROUNDS,
        decode_steps=8,
    )
    return measured.model_dump(mode="json")


def _wrapped(model: Generator, arm: str) -> Generator:
    return Prompted(model, SYSTEM_PROMPT) if arm == "system-prompt" else model


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
    parser.add_argument("--limit", type=int, help="test records; all by default")
    parser.add_argument("--no-judge", action="store_true", help="a quick trial: leave the second judge out")
    parser.add_argument("--no-latency", action="store_true", help="a quick trial: leave latency out")
    options = parser.parse_args()
    if options.recalibrate and options.precision == "fp32":
        parser.error("--recalibrate is for a --precision other than fp32")
    torch.set_num_threads(1)
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
