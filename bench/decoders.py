"""Our own decoder graphs beside PyTorch and ONNX Runtime GenAI's builder, from the same weights.

``python bench/decoders.py -o OUT [--tokens N …] [--layers 16] [--width 1024]``

A decoder with random weights (197 million parameters by default) runs in five forms: PyTorch with sdpa, our export in
fp32 and int4, and the builder's decoder in both. At each length every arm reads a prompt and decodes after it, batch 1.
Arms run in random order every round, and our fp32 graph twice, in a session of its own, as the A/A control. ONNX
Runtime's threads do not spin between runs. Given are medians of processor time, which other work on the machine
lengthens less than the clock's, and ratios with a bootstrap 95 % interval. Every arm's peak memory is that of a process
of its own that opens it and reads the longest prompt, over what the imports take.

Writes OUT/decoders.json after every length, and OUT/decoders.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter, process_time, sleep
from typing import Any

import numpy as np
import onnxruntime
import torch

from safetykit.bench.random_decoder import HEAD, random_llama, write_decoder
from safetykit.bench.skeleton import PAUSE, arguments, peak_mb, read_results, run, say, write_results, write_table
from safetykit.export.document.latency import interleave, median_ratio
from safetykit.export.runtime.sessions import cores

PYTORCH, OWN, BUILDER, OWN4, BUILDER4 = "PyTorch sdpa", "own fp32", "builder fp32", "own int4", "builder int4"
CONTROL = "own fp32 again"
ARMS = (PYTORCH, OWN, BUILDER, OWN4, BUILDER4)
PAIRS = ((CONTROL, OWN), (OWN, BUILDER), (OWN4, BUILDER4), (OWN, PYTORCH), (OWN4, PYTORCH))
TOKENS = (128, 1024, 4096)
PHASES = ("prefill", "decode")
WARM_UP = 1  # rounds that are not counted
QUICK = {"layers": 1, "width": 128, "vocabulary": 64, "tokens": [8], "rounds": 5, "decode_steps": 1}

Cache = Any  # of an arm: transformers' object, or arrays by input name


class Graph:
    """A decoder graph in a session of its own."""

    def __init__(self, path: Path, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.shapes = {value.name: value.shape for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, embeds: np.ndarray, before: int, cache: Cache) -> Cache:
        """Read embeddings [1, new, d] after ``before`` tokens; the cache of both."""
        shapes = [(name, shape) for name, shape in self.shapes.items() if name.startswith("past_key_values.")]
        past = cache or {name: np.zeros((1, shape[1], 0, self.width(shape)), np.float32) for name, shape in shapes}
        feeds = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((1, before + embeds.shape[1]), np.int64),
            "position_ids": np.arange(before, before + embeds.shape[1])[None],
            **past,
        }
        found = self.session.run(self.outputs, {name: value for name, value in feeds.items() if name in self.shapes})
        results = dict(zip(self.outputs, found, strict=True))
        return {name: results[name.replace("past_key_values.", "present.")] for name in past}

    def width(self, shape: Sequence[int | str]) -> int:
        """Of a head; the builder leaves it open."""
        return shape[3] if isinstance(shape[3], int) else HEAD


class Torch:
    """The model in PyTorch; logits of the last position, as ``generate`` asks for them."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        self.model = random_llama(options.layers, options.width, options.vocabulary, options.longest)
        self.model.config._attn_implementation = "sdpa"

    @torch.inference_mode()
    def __call__(self, embeds: np.ndarray, before: int, cache: Cache) -> Cache:
        """As :class:`Graph`."""
        states = torch.from_numpy(embeds)
        return self.model(inputs_embeds=states, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values


Arm = Callable[[np.ndarray, int, Cache], Cache]


def opened(name: str, folder: Path, options: argparse.Namespace) -> Arm:
    """An arm, ready to run."""
    if name == PYTORCH:
        return Torch(options)
    place = folder / (OWN if name == CONTROL else name).replace(" ", "-")
    return Graph(next(place.glob("*.onnx")), options.threads)


def write(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Write every graph that is not there; the seconds that each took."""
    seconds = {}
    model = random_llama(options.layers, options.width, options.vocabulary, options.longest)
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        model.save_pretrained(checkpoint)
        _tokenizer().save_pretrained(checkpoint)
    for name in ARMS[1:]:
        place, precision = folder / name.replace(" ", "-"), name.rpartition(" ")[2]
        if place.is_dir():
            continue
        say(f"writing {name}")
        started = perf_counter()
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            if name in (OWN, OWN4):
                write_decoder(model, Path(scratch), precision)
            else:
                _build(checkpoint, Path(scratch), precision)
            Path(scratch).rename(place)
            Path(scratch).mkdir()
        seconds[name] = round(perf_counter() - started, 1)
    return seconds


def _build(checkpoint: Path, folder: Path, precision: str) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(folder)]
    command += ["-p", precision, "-e", "cpu", "-c", str(folder / "cache"), "--extra_options", "exclude_embeds=true"]
    subprocess.run(command, check=True, capture_output=True)


def _tokenizer() -> Any:
    """Any tokenizer: the builder copies one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), bos_token="<s>", eos_token="</s>")


def timed(arm: Arm, tokens: int, options: argparse.Namespace) -> tuple[float, float, float, float]:
    """Seconds of a prefill and of a decoding step after it, the median of some: the processor's, then the clock's."""
    sleep(PAUSE)
    random = np.random.default_rng(0)
    prompt = random.standard_normal((1, tokens, options.width)).astype(np.float32)
    rows = []
    cache, before = None, 0
    for embeds in (prompt, *[prompt[:, :1]] * options.decode_steps):
        clock, processor = perf_counter(), process_time()
        cache = arm(embeds, before, cache)
        rows.append((process_time() - processor, perf_counter() - clock))
        before += embeds.shape[1]
    steps = np.median(rows[1:], axis=0)
    return rows[0][0], float(steps[0]), rows[0][1], float(steps[1])


def measure(arms: Mapping[str, Arm], tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Median times and the ratios of :data:`PAIRS` at one length."""
    calls = {name: (lambda arm=arm: timed(arm, tokens, options)) for name, arm in arms.items()}
    rounds = max(5, round(options.rounds * min(1.0, 128 / tokens)))
    times = interleave(calls, rounds, WARM_UP, seed=0)
    medians = {name: (1000 * np.median(values, axis=0)).round(2).tolist() for name, values in times.items()}
    return {
        "rounds": rounds,
        "load_average": os.getloadavg(),
        "cpu_ms": {name: values[:2] for name, values in medians.items()},
        "wall_ms": {name: values[2:] for name, values in medians.items()},
        "ratios": {
            f"{above} / {below}": {
                phase: median_ratio(times[above][:, at], times[below][:, at], 0).model_dump()
                for at, phase in enumerate(PHASES)
            }
            for above, below in PAIRS
        },
    }


def memory(name: str, folder: Path, options: argparse.Namespace) -> float:
    """Peak memory of one arm in a process of its own, in MiB."""
    said = {key: value for key, value in vars(options).items() if key not in ("folder", "out", "quick")}
    command = [sys.executable, __file__, "-o", str(folder), "--alone", json.dumps([name, str(folder), said])]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def alone(name: str, folder: Path, options: argparse.Namespace) -> float:
    """Open one arm, read the longest prompt and one token, and give the peak over the imports."""
    start = peak_mb()
    timed(opened(name, folder, options), options.longest - 1, argparse.Namespace(width=options.width, decode_steps=1))
    return peak_mb() - start


def table(found: Mapping[str, Any]) -> str:
    """The results in Markdown."""
    lengths = sorted(found["lengths"], key=int)
    heads = [f"{phase} {length}" for length in lengths for phase in PHASES]
    lines = [f"| processor time, ms | {' | '.join(heads)} | peak, MiB |", "|---" * (len(heads) + 2) + "|"]
    for name in (*ARMS, CONTROL):
        cells = [f"{found['lengths'][one]['cpu_ms'][name][at]:,.4g}" for one in lengths for at in range(2)]
        peak = found["memory_mb"].get(name, "")
        lines.append(f"| {name} | {' | '.join(cells)} | {'less than imports' if peak == 0 else peak} |")
    lines += ["", f"| ratio | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for above, below in PAIRS:
        rows = [found["lengths"][one]["ratios"][f"{above} / {below}"][phase] for one in lengths for phase in PHASES]
        cells = [f"{row['value']:.2f} ({row['low']:.2f}–{row['high']:.2f})" for row in rows]
        lines.append(f"| {above} / {below} | {' | '.join(cells)} |")
    options, seconds = found["options"], found["export_seconds"]
    made = ", ".join(f"{name} {value:g} s" for name, value in seconds.items()) or "an earlier run"
    rounds = ", ".join(f"{found['lengths'][one]['rounds']} at {one}" for one in lengths)
    loads = ", ".join(f"{found['lengths'][one]['load_average'][0]:.1f}" for one in lengths)
    return f"""\
{options["layers"]} layers of width {options["width"]}, vocabulary {options["vocabulary"]}, batch 1, \
{options["threads"]} thread; medians of rounds ({rounds}); ONNX Runtime {found["onnxruntime"]}; load average {loads} \
on {found["cpus"]} processors. Written in: {made}.

{chr(10).join(lines)}
"""


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = arguments(__doc__, quick=QUICK)
    parser.add_argument("-o", "--out", type=Path, help="folder for results; the current one by default", default=Path())
    parser.add_argument("--tokens", type=int, action="append", help="lengths; 128, 1024 and 4096 by default")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20, help="at 128 tokens; fewer at more, but never under 5")
    parser.add_argument("--decode-steps", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="keep the graphs here, and use them if they are there")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args(given)
    if options.alone:
        name, folder, said = json.loads(options.alone)
        print(alone(name, Path(folder), argparse.Namespace(**said)))
        return 0
    options.tokens = options.tokens or list(TOKENS)
    options.longest = max(options.tokens) + options.decode_steps + 1
    results = options.out / "decoders.json"
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = read_results(results, {"lengths": {}, "export_seconds": {}, "memory_mb": {}})
        found["export_seconds"] |= write(folder, options)
        found["options"] = {name: value for name, value in vars(options).items() if name not in ("folder", "out")}
        found["cpus"], found["onnxruntime"] = cores(), onnxruntime.__version__
        for name in ARMS:
            if name not in found["memory_mb"]:
                found["memory_mb"][name] = round(memory(name, folder, options))
        arms = {name: opened(name, folder, options) for name in (*ARMS, CONTROL)}
        for tokens in options.tokens:
            say(f"measuring at {tokens}")
            found["lengths"][str(tokens)] = measure(arms, tokens, options)
            write_results(results, found)
    write_table(options.out / "decoders.md", table(found))
    return 0


if __name__ == "__main__":
    run(main)
