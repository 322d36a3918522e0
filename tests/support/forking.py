"""What tests of forked graphs share: exports with a detector, and whether they judge like PyTorch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.compare import parity_requests
from safetykit.export.parity.exposed import require_movement
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base, place
from safetykit.toolkit.model.vlm import VLM

CASES = parity_requests()
MIXED = CASES["4 rows padded, mixed"]
STEPS = 2
N_LAYERS = 3


def forked_exports(vlm: VLM, base_folder: Path, tmp_path: Path) -> Callable[..., OnnxVLM]:
    """Adapt the base in a new folder and open it; a test may spoil the decoder in between."""

    def run(*adapters: Adapter, enforce: bool = False, spoil=None) -> OnnxVLM:
        base = read_manifest(base_folder)
        copy_base(base_folder, tmp_path, base)
        manifest = adapt(tmp_path, base, adapters, enforce=enforce)
        require_movement(tmp_path, manifest, place(adapters))
        if spoil is not None:
            model = ir.load(tmp_path / "decoder.onnx")
            spoil(model)
            ir.save(model, tmp_path / "decoder.onnx")
        return OnnxVLM(tmp_path, manifest, vlm.inputs, ["CPUExecutionProvider"])

    return run


def assert_same_risk(vlm, onnx_vlm, *adapters, tolerance=1e-5):
    for batch in CASES.values():
        with vlm.applied(*adapters) as hooks:
            vlm.prefill(batch)
        ours, theirs = hooks.extras["risk"].numpy(), onnx_vlm.prefill_requests(batch).extras["risk"]
        assert theirs.dtype == np.float32 and theirs.shape == (len(batch),)
        assert np.abs(ours - theirs).max() <= tolerance * max(1, np.abs(ours).max())
