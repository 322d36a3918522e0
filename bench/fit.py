"""What a fit costs: time over bare forward passes on the same records, and memory against their number.

    python bench/fit.py MODEL --data DATA [--method vlm-guard|care|care-kernel]

Time: the method's collection of statistics of every layer against forward passes without hooks on the same
batches, interleaved in random order, with a second run of the bare passes as A/A control; ratios with their
2.5–97.5 % range over rounds. ``care-kernel`` chooses tokens by kernel, which needs a pass over reference
records first. Memory: peak resident size of one process per number of records (the same records repeated),
less that of a process that only loads the model.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.care import statistics as care
from safetykit.adapters.care.statistics import roles
from safetykit.adapters.vlm_guard import statistics as guard
from safetykit.bench.skeleton import arguments, emit, one_thread, peak_mb, run
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

METHODS = ("vlm-guard", "care", "care-kernel")


def used_records(data: str) -> list[Record]:
    """Records of the splits a fit reads."""
    return load_records(data_path(data), ["fit", "calibration"])


def groups(method: str, records: list[Record]) -> list[list[Record]]:
    """What each pass of a method runs over."""
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
        group = sorted(group, key=lambda record: (record.image is not None, len(record.prompt)))
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            inputs = vlm.inputs.prepare([Request(record.prompt, record.picture()) for record in batch])
            with torch.inference_mode():
                vlm.model(**vlm.arguments(inputs, cached_features=False), use_cache=False)


def fit_all_layers(vlm: VLM, method: str, records: list[Record]) -> None:
    """What `fit --sweep` does before solving: statistics of every layer."""
    vlm.features.clear()  # the bare passes run the tower too
    if method == "vlm-guard":
        guard.collect(vlm, records, [Site.block(layer) for layer in range(vlm.base.n_layers)])
        return
    tokens = care.TokenChoice("kernel" if method == "care-kernel" else "none")
    sites = [Site.block(layer) for layer in range(vlm.base.n_layers)]
    care.collect(vlm, roles([record for record in records if record.split == "fit"], "carrier"), sites, tokens)


def times(model: str, data: str, method: str, rounds: int) -> dict[str, object]:
    """Interleaved timing."""
    vlm, records = VLM.from_pretrained(model_path(model)), used_records(data)
    arms = {
        "fit": lambda: fit_all_layers(vlm, method, records),
        "bare": lambda: bare_forwards(vlm, method, records),
        "control": lambda: bare_forwards(vlm, method, records),
    }
    order, seconds = random.Random(0), {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in order.sample(sorted(arms), len(arms)):
            start = time.perf_counter()
            arms[name]()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)

    def ratio(name: str) -> dict[str, float]:
        ratios = np.array(seconds[name]) / np.array(seconds["bare"])
        low, high = np.percentile(ratios, [2.5, 97.5])
        return {"median": float(np.median(ratios)), "low": float(low), "high": float(high)}

    return {"rounds": rounds, "fit_over_bare": ratio("fit"), "control": ratio("control")}


def peak_megabytes(model: str, data: str, method: str, copies: int) -> dict[str, float]:
    """Peak resident size of a fresh process that fits on ``copies`` times the records (0: only loads)."""
    code = [sys.executable, __file__, model, "--data", data, "--method", method, "--one-fit", str(copies)]
    return json.loads(subprocess.run(code, check=True, capture_output=True, text=True).stdout)


def one_fit(model: str, data: str, method: str, copies: int) -> None:
    """Runs inside the fresh process."""
    vlm, records = VLM.from_pretrained(model_path(model)), used_records(data)
    if copies:
        repeated = [
            record.model_copy(update={"id": f"{copy}:{record.id}", "pair": record.pair and f"{copy}:{record.pair}"})
            for copy in range(copies)
            for record in records
        ]
        for record in repeated:
            record._folder = records[0]._folder
        fit_all_layers(vlm, method, repeated)
    peak = peak_mb()
    print(json.dumps({"records": copies * len(records), "peak_mb": round(peak, 1)}))


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--method", choices=METHODS, default=METHODS[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--one-fit", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    one_thread()
    if options.one_fit is not None:
        one_fit(options.model, options.data, options.method, options.one_fit)
        return
    chosen = (options.model, options.data, options.method)
    memory = [peak_megabytes(*chosen, copies) for copies in (0, 1, 2, 4, 8)]
    time_taken = times(*chosen, options.rounds)
    emit({"method": options.method, "time": time_taken, "memory": memory})


if __name__ == "__main__":
    run(main)
