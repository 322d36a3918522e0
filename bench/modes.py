"""What an adapter costs in each mode: ``python bench/modes.py --layers 16 --width 1024 [--precision int4]``.

A decoder with random weights is exported once (200 million parameters by default) and adapted at ``--adapted`` of its
blocks, with gates that are closed or open as they fall. Arms, in random order every round: the unmodified graph; the
same in a second session (the A/A control); the adapter baked; hot-swap with its defaults; hot-swap with another
adapter fed on every run; and baked with gates that are held, their state in the cache. Ratios are medians over rounds
with a bootstrap 95 % interval; a cost is stated only above the control's. Prints JSON.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter, sleep

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.sites import Gating, Site
from safetykit.bench.random_decoder import random_llama, write_decoder
from safetykit.bench.skeleton import CONTROL, PAUSE, UNMODIFIED, arguments, emit, median_ms, ratios, run
from safetykit.export.document.latency import interleave
from safetykit.export.manifest import LAYOUT
from safetykit.export.runtime.binding import Session
from safetykit.export.runtime.sessions import cores, open_session
from safetykit.export.surgery.bake import Placed, bake
from safetykit.export.surgery.swappable import describe_parameters, open_parameters

WARM_UP = 2  # rounds that are not counted
QUICK = {
    "layers": 2,
    "width": 128,
    "vocabulary": 64,
    "adapted": 2,
    "rank": 2,
    "prompt_tokens": 8,
    "rounds": 5,
    "decode_steps": 2,
}


def interventions(options: argparse.Namespace, seed: int, gate: Gating = "per-token") -> list[Placed]:
    """Gated steering at blocks spread over the decoder; pushes are small, so that answers stay of normal size."""
    generator = torch.Generator().manual_seed(seed)
    placed = []
    for index, layer in enumerate(np.linspace(0, options.layers - 1, options.adapted).round().astype(int)):
        basis, _ = torch.linalg.qr(torch.randn(options.width, options.rank, generator=generator))
        tensors = {
            "basis": basis.contiguous(),
            "mean": torch.zeros(options.width),
            "gate": basis[:, 0].contiguous(),
            "threshold": torch.tensor(0.0),
            "alpha": torch.tensor(0.1),
        }
        item = Intervention("GatedSteering", Site.block(int(layer)), "all", "both", tensors, gate)
        placed.append(Placed(index, item))
    return placed


def adapted(folder: Path, options: argparse.Namespace, *, mode: str, gate: Gating = "per-token") -> bytes:
    """The decoder with the adapter in it, beside the same weights file."""
    swappable = mode == "hot-swap"
    placed = interventions(options, seed=1, gate=gate)
    model = bake(ir.load(folder / LAYOUT.decoder), "decoder", placed, swappable=swappable, gate_state="cache")
    if swappable:
        open_parameters(model, describe_parameters(model, "decoder", placed, [], [], None))
    return ir.serde.serialize_model(model).SerializeToString()


class Arm:
    """One graph in a session of its own."""

    def __init__(self, source: Path | bytes, folder: Path, overrides: dict[str, np.ndarray] | None = None) -> None:
        self.session = Session(open_session(source, data_folder=folder))
        self.session.override(overrides or {})
        self.shapes = {value.name: value.shape for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, new: int, batch: int, past: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Random embeddings of ``new`` tokens per row, after ``past``; returns the cache."""
        names = [name for name in self.shapes if name.startswith("past_key_values.")]
        heads, width = self.shapes[names[0]][1::2]
        past = past or {name: np.zeros((batch, heads, 0, width), np.float32) for name in names}
        length, d_model = past[names[0]].shape[2], self.shapes["inputs_embeds"][2]
        feeds = {
            "inputs_embeds": np.random.default_rng(0).standard_normal((batch, new, d_model)).astype(np.float32),
            "attention_mask": np.ones((batch, length + new), np.int64),
            "position_ids": np.tile(np.arange(length, length + new), (batch, 1)),
            **past,
        }
        results = dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))
        return {name: results[name.replace("past_key_values.", "present.")] for name in names}


def timed(arm: Arm, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a prefill, and the median of the decoding steps after it."""
    sleep(PAUSE)
    start = perf_counter()
    past = arm.run(options.prompt_tokens, options.batch)
    prefill, steps = perf_counter() - start, []
    for _ in range(options.decode_steps):
        start = perf_counter()
        past = arm.run(1, options.batch, past)
        steps.append(perf_counter() - start)
    return prefill, float(np.median(steps))


def measure(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Ratios of every arm over the unmodified graph, beside the control's."""
    swappable = adapted(folder, options, mode="hot-swap")
    other = {
        one.name(name): np.atleast_1d(tensor.numpy())
        for one in interventions(options, seed=2)
        for name, tensor in one.item.tensors.items()
    }
    made = {
        UNMODIFIED: Arm(folder / LAYOUT.decoder, folder),
        CONTROL: Arm(folder / LAYOUT.decoder, folder),
        "baked": Arm(adapted(folder, options, mode="bake"), folder),
        "hot-swap, defaults": Arm(swappable, folder),
        "hot-swap, fed": Arm(swappable, folder, other),
        "baked, gates held": Arm(adapted(folder, options, mode="bake", gate="held"), folder),
    }
    arms = {name: (lambda arm=arm: timed(arm, options)) for name, arm in made.items()}
    times = interleave(arms, options.rounds, WARM_UP, seed=0)
    others = [name for name in made if name not in (UNMODIFIED, CONTROL)]
    return {
        "options": {name: value for name, value in vars(options).items() if name != "folder"},
        "onnxruntime": onnxruntime.__version__,
        "cpus": cores(),
        "load_average": os.getloadavg(),
        "weights_mb": (folder / LAYOUT.data("decoder")).stat().st_size / 2**20,
        "median_ms": median_ms(times),
        **ratios(times, others),
    }


def main(given: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    parser = arguments(__doc__, quick=QUICK)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--adapted", type=int, default=12, help="adapted blocks")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "int4"), default="fp32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--decode-steps", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="keep the base graph here, and use it if it is there")
    options = parser.parse_args(given)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / LAYOUT.decoder).exists():
            write_decoder(random_llama(options.layers, options.width, options.vocabulary), folder, options.precision)
        emit(measure(folder, options))
    return 0


if __name__ == "__main__":
    run(main)
