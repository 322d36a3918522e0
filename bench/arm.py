"""A decoder in a session of its own, and what opening it costs, in a process that imports no torch."""

from __future__ import annotations

import resource
from pathlib import Path
from time import perf_counter

import numpy as np

from safetykit.export.runtime.sessions import open_session


class Arm:
    """One graph in a session of its own."""

    def __init__(self, path: Path) -> None:
        self.session = open_session(path)
        self.shapes = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]

    def feeds(self, batch: int, new: int, past: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Random embeddings of ``new`` tokens per row, after ``past``."""
        heads, width = self.shapes["past_key_values.0.key"].shape[1::2]
        names = [name for name in self.shapes if name.startswith("past_key_values.")]
        past = past or {name: np.zeros((batch, heads, 0, width), np.float32) for name in names}
        length = past[names[0]].shape[2]
        d_model = self.shapes["inputs_embeds"].shape[2]
        return {
            "inputs_embeds": np.random.default_rng(0).standard_normal((batch, new, d_model)).astype(np.float32),
            "attention_mask": np.ones((batch, length + new), np.int64),
            "position_ids": np.tile(np.arange(length, length + new), (batch, 1)),
            **past,
        }

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self.outputs, self.session.run(self.outputs, feeds), strict=True))


def load(path: Path, tokens: int) -> dict[str, float]:
    """Seconds to open a graph, and the process's memory after opening and after one prefill, in MB."""
    before = _resident()
    start = perf_counter()
    arm = Arm(path)
    seconds = perf_counter() - start
    opened = _resident()
    arm.run(arm.feeds(1, tokens))
    return {
        "load_s": seconds,
        "opened_mb": opened - before,
        "prefilled_mb": _resident() - before,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before,
    }


def _resident() -> float:
    """Resident memory without pages that are merely mapped from files, in MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024
