"""What a fit costs: time over bare forward passes on the same records, and memory against their number.

    python bench/fit.py MODEL --data DATA [--method vlm-guard|care|care-kernel|one-pass|sasa] [-o OUT] [--memory]

Time: CPU seconds on one thread, of the method's collection of statistics of every layer (VLM-Guard, CARE) or of the
whole fit with its choice of layers (detectors), against forward passes without hooks on the same batches, interleaved
in random order, with a second run of the bare passes as A/A control; ratios with their range over rounds.
``care-kernel`` chooses tokens by kernel, which needs a pass over reference records first. Passes: rows that went
through a block, over those of the bare passes; no clock has a say. With OUT, results are kept in OUT/fit.json and
OUT/fit.md. Memory: peak resident size of one process per number of records (the same records repeated), less that of
a process that only loads the model.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.care import statistics as care
from safetykit.adapters.care.statistics import roles
from safetykit.adapters.one_pass.settings import OnePassProbe
from safetykit.adapters.protocols import Refusal
from safetykit.adapters.sasa.settings import SASA
from safetykit.adapters.vlm_guard import statistics as guard
from safetykit.bench.skeleton import (
    arguments,
    emit,
    one_thread,
    peak_mb,
    read_results,
    run,
    write_results,
    write_table,
)
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.second_pass import SecondPass
from safetykit.toolkit.model.vlm import VLM

DETECTORS = {"one-pass": OnePassProbe, "sasa": SASA}
METHODS = ("vlm-guard", "care", "care-kernel", *DETECTORS)
REFUSAL = Refusal("no .", 0)


def used_records(data: str) -> list[Record]:
    """Records of the splits a fit reads."""
    return load_records(data_path(data), ["fit", "calibration"])


def groups(method: str, records: list[Record]) -> list[list[Record]]:
    """What each pass of a method runs over."""
    if method in DETECTORS:
        return [records]
    fit = [record for record in records if record.split == "fit"]
    if method != "vlm-guard":
        by_role = roles(fit, "carrier")
        return [[*by_role["malicious"], *by_role["benign"]]]
    return [
        [record for record in fit if record.carrier == "text"],
        [record for record in fit if record.carrier != "text" and record.label == "harmless"],
        [record for record in records if record.split == "calibration" and record.label == "harmless"],
    ]


def bare_forwards(vlm: VLM, method: str, records: list[Record], batch_size: int = 32) -> None:
    """The forward passes that the fit needs at least."""
    for group in groups(method, records):
        group = sorted(group, key=lambda record: (record.pictured, record.length))
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            inputs = vlm.inputs.prepare([request_of(record) for record in batch])
            with torch.inference_mode():
                vlm.model(**vlm.arguments(inputs, cached_features=False), use_cache=False)


def fit_all_layers(vlm: VLM, method: str, records: list[Record]) -> None:
    """What `fit --sweep` does before solving, statistics of every layer; of a detector, all of `fit`."""
    vlm.features.clear()  # the bare passes run the tower too
    if method in DETECTORS:
        DETECTORS[method]().fit(SecondPass(vlm), records, REFUSAL)
        return
    if method == "vlm-guard":
        guard.collect(vlm, records, [Site.block(layer) for layer in range(vlm.base.n_layers)])
        return
    tokens = care.TokenChoice("kernel" if method == "care-kernel" else "none")
    sites = [Site.block(layer) for layer in range(vlm.base.n_layers)]
    care.collect(vlm, roles([record for record in records if record.split == "fit"], "carrier"), sites, tokens)


def rows_through_blocks(vlm: VLM, work: Callable[[], object]) -> int:
    """How many rows went through a block while ``work`` ran, of all blocks together."""
    seen = [0]

    def count(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen[0] += len(args[0] if args else kwargs["hidden_states"])

    with ExitStack() as stack:
        for block in vlm.parts.layers:
            stack.callback(block.register_forward_pre_hook(count, with_kwargs=True).remove)
        work()
    return seen[0]


def times(vlm: VLM, records: list[Record], method: str, rounds: int) -> dict[str, Any]:
    """Interleaved timing."""
    arms = {
        "fit": lambda: fit_all_layers(vlm, method, records),
        "bare": lambda: bare_forwards(vlm, method, records),
        "control": lambda: bare_forwards(vlm, method, records),
    }
    rows = {name: rows_through_blocks(vlm, arms[name]) for name in ("bare", "fit")}  # these also warm up
    order, seconds = random.Random(0), {name: [] for name in arms}
    for _ in range(rounds):
        for name in order.sample(sorted(arms), len(arms)):
            start = time.process_time()
            arms[name]()
            seconds[name].append(time.process_time() - start)

    def ratio(name: str) -> dict[str, float]:
        ratios = np.array(seconds[name]) / np.array(seconds["bare"])
        return {"median": float(np.median(ratios)), "low": float(ratios.min()), "high": float(ratios.max())}

    return {
        "layers": vlm.base.n_layers,
        "width": vlm.base.d_model,
        "records": len(records),
        "rounds": rounds,
        "bare_seconds": float(np.median(seconds["bare"])),
        "passes": rows["fit"] / rows["bare"],
        "fit_over_bare": ratio("fit"),
        "control": ratio("control"),
    }


def copied(records: list[Record], copies: int) -> list[Record]:
    """The same records several times over, under other names."""
    return [
        record.model_copy(update={"id": f"{copy}:{record.id}", "pair": record.pair and f"{copy}:{record.pair}"})
        for copy in range(copies)
        for record in records
    ]


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row for each model, number of records and method."""
    lines = [
        "| decoder | records | method | passes through blocks | CPU time over bare | control |",
        "|---|---:|---|---:|---:|---:|",
    ]
    ordered = sorted(results.values(), key=lambda row: (row["layers"], row["records"], METHODS.index(row["method"])))
    for row in ordered:
        spread, control = (
            "{median:.2f} ({low:.2f}–{high:.2f})".format(**row[name]) for name in ("fit_over_bare", "control")
        )
        shape = f"{row['layers']} layers of width {row['width']}"
        lines.append(f"| {shape} | {row['records']:,} | {row['method']} | {row['passes']:.2f} | {spread} | {control} |")
    return "\n".join([*lines, ""])


def peak_megabytes(model: str, data: str, method: str, copies: int) -> dict[str, float]:
    """Peak resident size of a fresh process that fits on ``copies`` times the records (0: only loads)."""
    code = [sys.executable, __file__, model, "--data", data, "--method", method, "--one-fit", str(copies)]
    return json.loads(subprocess.run(code, check=True, capture_output=True, text=True).stdout)


def one_fit(model: str, data: str, method: str, copies: int) -> None:
    """Runs inside the fresh process."""
    vlm, records = VLM.from_pretrained(model_path(model)), used_records(data)
    if copies:
        fit_all_layers(vlm, method, copied(records, copies))
    peak = peak_mb()
    print(json.dumps({"records": copies * len(records), "peak_mb": round(peak, 1)}))


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--method", choices=METHODS, default=METHODS[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--copies", type=int, default=1, help="how often the records are taken")
    parser.add_argument("--memory", action="store_true", help="measure memory, too")
    parser.add_argument("-o", "--out", type=Path, help="folder for results; what is there of other runs is kept")
    parser.add_argument("--one-fit", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    one_thread()
    if options.one_fit is not None:
        one_fit(options.model, options.data, options.method, options.one_fit)
        return
    vlm = VLM.from_pretrained(model_path(options.model))
    records = used_records(options.data)
    records = copied(records, options.copies) if options.copies > 1 else records
    found = {"method": options.method, **times(vlm, records, options.method, options.rounds)}
    if options.memory:
        chosen = (options.model, options.data, options.method)
        found["memory"] = [peak_megabytes(*chosen, copies) for copies in (0, 1, 2, 4, 8)]
    if not options.out:
        emit(found)
        return
    key = " ".join(str(found[name]) for name in ("layers", "width", "records", "method"))
    results = {**read_results(options.out / "fit.json"), key: found}
    write_results(options.out / "fit.json", results)
    write_table(options.out / "fit.md", table(results))


if __name__ == "__main__":
    run(main)
