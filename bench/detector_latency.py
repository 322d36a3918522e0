"""What a detector's branch costs: ``python bench/detector_latency.py --layers 16 --width 1024``.

A decoder with random weights is exported once and forked. Arms, in random order every round: the forked graph, the
unmodified one, the unmodified one in a second session (the A/A control), and the naive reading of SASA, which runs
the unmodified decoder three times: both passes of the detector, then the answer's prefill. Ratios are medians over
rounds with a bootstrap 95 % interval. Sessions are also opened in processes of their own, for load time and memory.
Prints JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import onnx_ir as ir
import torch

from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.ops.branch import Branch
from safetykit.bench.arm import Arm, load
from safetykit.bench.random_decoder import random_llama
from safetykit.bench.skeleton import PAUSE, arguments, emit, median_ms, run
from safetykit.export.base.own import save_graph
from safetykit.export.base.specs import decoder_spec
from safetykit.export.base.tracing import export_graph
from safetykit.export.document.latency import interleave, median_ratio
from safetykit.export.surgery.blocks import block_evaluations
from safetykit.export.surgery.fork import fork
from safetykit.export.surgery.residual import find_residual_stream
from safetykit.toolkit.families import Family

BASE, FORKED = "decoder.onnx", "forked.onnx"
WARM_UP = 2  # rounds that are not counted
QUICK = {"layers": 4, "width": 128, "vocabulary": 64, "prompt_tokens": 8, "rounds": 5, "decode_steps": 2}


def write_graphs(folder: Path, options: argparse.Namespace) -> None:
    """Both graphs, reading one weights file."""
    model = random_llama(options.layers, options.width, options.vocabulary)
    save_graph(export_graph(decoder_spec(model, Family()), "fp32"), folder / BASE)
    graph = ir.load(folder / BASE)
    tensors = {"weight": torch.randn(options.width), "bias": torch.tensor(0.0)}
    branch = Branch("FusedProjection", Site.block(options.safety), Site.block(options.fused), tensors)
    ir.save(fork(graph, find_residual_stream(graph), branch), folder / FORKED)


def timed(arm: Arm, options: argparse.Namespace, passes: int = 1) -> tuple[float, float]:
    """Seconds of ``passes`` prefills, and the median of the decoding steps after them."""
    sleep(PAUSE)
    feeds = arm.feeds(options.batch, options.prompt_tokens)
    start = perf_counter()
    for _ in range(passes):
        result = arm.run(feeds)
    prefill, steps = perf_counter() - start, []
    for _ in range(options.decode_steps):
        past = {
            name.replace("present.", "past_key_values."): value for name, value in result.items() if "present." in name
        }
        feeds = arm.feeds(options.batch, 1, past)
        start = perf_counter()
        result = arm.run(feeds)
        steps.append(perf_counter() - start)
    return prefill, float(np.median(steps))


def measure(folder: Path, graphs: dict[str, str], options: argparse.Namespace) -> dict[str, object]:
    """Ratios over the unmodified graph, for every graph in ``graphs``."""
    context = multiprocessing.get_context("spawn")
    loads = {}
    for name, file in {"unmodified": BASE, **graphs}.items():
        with context.Pool(1) as pool:
            loads[name] = pool.apply(load, (folder / file, options.prompt_tokens))
    plain, control = Arm(folder / BASE), Arm(folder / BASE)
    forked = {name: Arm(folder / file) for name, file in graphs.items()}
    same = {}
    for name, arm in forked.items():
        feeds = plain.feeds(options.batch, options.prompt_tokens)
        ours, theirs = arm.run(feeds), plain.run(feeds)
        same[name] = all(np.array_equal(ours[output], theirs[output]) for output in plain.outputs)
    arms = {
        "unmodified": lambda: timed(plain, options),
        "control": lambda: timed(control, options),
        "naive": lambda: timed(plain, options, passes=3),
        **{name: (lambda arm=arm: timed(arm, options)) for name, arm in forked.items()},
    }
    times = interleave(arms, options.rounds, WARM_UP, seed=0)
    pairs = [("control", "unmodified"), ("naive", "unmodified")]
    pairs += [(name, other) for name in graphs for other in ("unmodified", "naive")]
    ratios = {
        f"{above}/{below}": {
            phase: median_ratio(times[above][:, at], times[below][:, at], 0).model_dump()
            for at, phase in enumerate(("prefill", "decode"))
        }
        for above, below in pairs
    }
    weights = (folder / f"{BASE}.data").stat().st_size
    base = weights + (folder / BASE).stat().st_size
    return {
        "options": {name: value for name, value in vars(options).items() if name != "folder"},
        "weights_mb": weights / 2**20,
        "blocks": {name: block_evaluations(folder / file) for name, file in {"unmodified": BASE, **graphs}.items()},
        "file_growth": {name: ((folder / file).stat().st_size + weights) / base - 1 for name, file in graphs.items()},
        "outputs_equal_bit_for_bit": same,
        "median_ms": median_ms(times),
        "ratios": ratios,
        "sessions": loads,
    }


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; s and f by default where the paper has them in 32 layers, 13 and 15."""
    parser = arguments(__doc__, quick=QUICK)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--safety", type=int)
    parser.add_argument("--fused", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--decode-steps", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="keep the graphs here, and use them if they are there")
    options = parser.parse_args(given)
    options.safety = options.layers * 13 // 32 if options.safety is None else options.safety
    options.fused = options.layers * 15 // 32 if options.fused is None else options.fused
    return options


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = parse(given)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / FORKED).exists():
            write_graphs(folder, options)
        emit(measure(folder, {"branch": FORKED}, options))
    return 0


if __name__ == "__main__":
    run(main)
