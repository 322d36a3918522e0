"""Where an export runs: what was exchanged, or computes otherwise, shows in the canaries that it brings along."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from safetykit.adapters.errors import ParityFailed
from safetykit.export.manifest import LAYOUT, read_manifest, write_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM

from .row import Figure, Place, Row, Tally


def _floats(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    """A change of a file of float32."""

    def apply(folder: Path) -> None:
        path = folder / name
        whole = path.read_bytes()
        values = np.frombuffer(whole, np.float32, len(whole) // 4)
        path.write_bytes(change(values).astype(np.float32).tobytes() + whole[4 * len(values) :])

    return apply


CHANGES: Mapping[str, Callable[[Path], object]] = {
    "the decoder without adapters": lambda f: shutil.copy(f / LAYOUT.base_graph("decoder"), f / LAYOUT.decoder),
    "an adapter of zeros": _floats(LAYOUT.adapter_data("decoder"), np.zeros_like),
    "an adapter turned round": _floats(LAYOUT.adapter_data("decoder"), np.negative),
    "a decoder of half its weights": _floats(LAYOUT.data("decoder"), lambda one: np.where(abs(one) < 0.02, 0, one)),
    "a vision encoder of zeros": _floats(LAYOUT.data("vision_encoder"), np.zeros_like),
}


def drift(place: Place) -> Figure:
    """Changed exports, every digest made right: asking the canaries must fail."""
    tally = Tally()
    tally.accepted("as it was", lambda: OnnxVLM.from_pretrained(place.export).check_canaries())
    for name, change in CHANGES.items():
        with place.scratch("drift") as work:
            folder = shutil.copytree(place.export, work / "export")
            change(folder)
            write_manifest(read_manifest(folder, verify=False), folder)
            act = lambda folder=folder: OnnxVLM.from_pretrained(folder).check_canaries()  # noqa: E731
            tally.refused(name, act, ParityFailed)
    return tally.figure("noticed, and the export as it was passes")


ROWS = (
    Row(
        "drift",
        "tamper-evident at run time",
        f"{len(CHANGES)} exports with other graphs or weights, digests made right: all noticed by `verify --canary`",
        drift,
    ),
)
