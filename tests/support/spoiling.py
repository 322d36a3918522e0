"""What tests of parity share: an export that a test may spoil, and the adapter that it should hold."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import CPU
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.export.surgery.layer_updates import plan_updates
from safetykit.toolkit.model.vlm import VLM

STEPS = 3


# The adapter that should have been exported: one ungated op, one gated one with a score.
ITEMS = (
    ("SubspaceProjection", "decoder.layers.0", "all", "both"),
    ("TargetSteering", "decoder.layers.1", "last", "prefill"),
)


def spoilt_exports(vlm: VLM, base_folder: Path, tmp_path: Path) -> Callable[..., OnnxVLM]:
    """Write an export of some adapters, then let a test spoil its graphs."""

    def run(*adapters: Adapter, spoil=None, graph="decoder", mode="bake", providers=CPU) -> OnnxVLM:
        base = read_manifest(base_folder)
        copy_base(base_folder, tmp_path, base)
        layers = plan_updates(vlm, [update for adapter in adapters for update in adapter.updates])
        manifest = adapt(tmp_path, base, adapters, layers, mode=mode) if adapters else base
        if spoil is not None:
            model = ir.load(tmp_path / f"{graph}.onnx")
            spoil(model)
            ir.save(model, tmp_path / f"{graph}.onnx")
        return OnnxVLM(tmp_path, manifest, vlm.inputs, providers)

    return run


def changed(adapter: Adapter, index: int, **changes) -> Adapter:
    """The adapter with other fields or tensors in one intervention."""
    item = adapter.interventions[index]
    tensors = {name: change(item.tensors[name]) for name, change in changes.items() if name in item.tensors}
    fields = {name: value for name, value in changes.items() if name not in item.tensors}
    items = list(adapter.interventions)
    items[index] = dataclasses.replace(item, tensors={**item.tensors, **tensors}, **fields)
    return Adapter(adapter.info, tuple(items))
