"""What tests of hot-swap share: exports whose adapters can be swapped, and what they say."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.compare import parity_requests
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.export.surgery.layer_updates import plan_updates
from safetykit.toolkit.model.vlm import VLM

MIXED = parity_requests()["4 rows padded, mixed"]
ITEMS = (
    ("SubspaceProjection", "decoder.layers.0", "all", "both"),
    ("TargetSteering", "decoder.layers.1", "last", "prefill"),
    ("SubspaceProjection", "projector", "all", "both"),
)


def swappable_exports(vlm: VLM, base_folder: Path, tmp_path: Path) -> Callable[..., OnnxVLM]:
    """``export(adapter, ..., mode=)``: an export folder of its own per call, opened."""
    made = []

    def run(*adapters: Adapter, mode: str = "hot-swap", **options) -> OnnxVLM:
        folder = tmp_path / f"export{len(made)}"
        made.append(folder)
        folder.mkdir()
        base = read_manifest(base_folder)
        copy_base(base_folder, folder, base)
        updates = [update for adapter in adapters for update in adapter.updates]
        manifest = adapt(folder, base, adapters, plan_updates(vlm, updates), mode=mode, **options)
        return OnnxVLM(folder, manifest, vlm.inputs, ["CPUExecutionProvider"])

    return run


def logits(onnx_vlm: OnnxVLM, steps: int = 3) -> list[np.ndarray]:
    """Of a prefill and some steps; the tokens are always the same."""
    state = onnx_vlm.prefill_requests(MIXED)
    found = [state.logits]
    for at in range(steps):
        state = onnx_vlm.step(state, np.full(len(MIXED), 8 + at))
        found.append(state.logits)
    return found


def same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def gap(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """The largest difference at the last positions, as a share of the largest logit."""
    return max(float(np.abs(a - b)[:, -1].max() / np.abs(a).max()) for a, b in zip(left, right, strict=True))
