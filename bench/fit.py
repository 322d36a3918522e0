"""What a fit costs: time over bare forward passes on the same records, and memory against their number.

    python bench/fit.py MODEL --data DATA

Time: VLM-Guard's collection of statistics against forward passes without hooks on the same batches,
interleaved in random order, with a second run of the bare passes as A/A control; ratios with their
2.5–97.5 % range over rounds. Memory: peak resident size of one process per number of records (the
same records repeated), less that of a process that only loads the model.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from safetykit.adapters.vlm_guard import collect
from safetykit.toolkit.inputs import Request
from safetykit.toolkit.records import Record, load_records
from safetykit.toolkit.sources import data_path, model_path
from safetykit.toolkit.vlm import VLM


def used_records(data: str) -> list[Record]:
    """Records of the splits a fit reads."""
    return load_records(data_path(data), ["fit", "calibration"])


def bare_forwards(vlm: VLM, records: list[Record], batch_size: int = 32) -> None:
    """The forward passes that the fit needs at least: fit texts, harmless fit pictures, harmless calibration records."""
    texts = [record for record in records if record.split == "fit" and record.carrier == "text"]
    benign = [record for record in records if record.split == "calibration" and record.label == "harmless"]
    pictured = [
        record for record in records if record.split == "fit" and record.carrier != "text" and record.label == "harmless"
    ]
    for group in (texts, pictured, benign):
        group = sorted(group, key=lambda record: (record.image is not None, len(record.prompt)))
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            inputs = vlm.inputs.prepare([Request(record.prompt, record.picture()) for record in batch])
            with torch.inference_mode():
                vlm.model(**vlm.arguments(inputs, cached_features=False), use_cache=False)


def fit_all_layers(vlm: VLM, records: list[Record]) -> None:
    """What `fit --sweep` does before solving: statistics of every layer."""
    vlm.features.clear()  # the bare passes run the tower too
    collect(vlm, records, range(vlm.base.n_layers))


def times(model: str, data: str, rounds: int) -> dict[str, object]:
    """Interleaved timing."""
    vlm, records = VLM.from_pretrained(model_path(model)), used_records(data)
    arms = {
        "fit": lambda: fit_all_layers(vlm, records),
        "bare": lambda: bare_forwards(vlm, records),
        "control": lambda: bare_forwards(vlm, records),
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


def peak_megabytes(model: str, data: str, copies: int) -> dict[str, float]:
    """Peak resident size of a fresh process that fits on ``copies`` times the records (0: only loads)."""
    code = [sys.executable, __file__, model, "--data", data, "--one-fit", str(copies)]
    return json.loads(subprocess.run(code, check=True, capture_output=True, text=True).stdout)


def one_fit(model: str, data: str, copies: int) -> None:
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
        collect(vlm, repeated, range(vlm.base.n_layers))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"records": copies * len(records), "peak_mb": round(peak, 1)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--one-fit", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)  # on a model as small as the reference VLM, threads cost more than they give
    if options.one_fit is not None:
        one_fit(options.model, options.data, options.one_fit)
        return
    memory = [peak_megabytes(options.model, options.data, copies) for copies in (0, 1, 2, 4, 8)]
    print(json.dumps({"time": times(options.model, options.data, options.rounds), "memory": memory}, indent=2))


if __name__ == "__main__":
    main()
