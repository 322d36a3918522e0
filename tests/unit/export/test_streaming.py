"""Ops that read several blocks, and gates that open once, do in a graph what they do in PyTorch, step by step."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from safetykit.adapters import Adapter, Intervention, Site, UsageError
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.parity.exposed import check_ops, require_movement
from safetykit.export.runtime.hotswap import Swap
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base, place

MIXED = parity_requests()["4 rows padded, mixed"]
STEPS = 6


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    def run(*adapters: Adapter, **options) -> OnnxVLM:
        base = read_manifest(base_folder)
        copy_base(base_folder, tmp_path, base)
        manifest = adapt(tmp_path, base, adapters, **options)
        require_movement(tmp_path, manifest, place(adapters))
        return OnnxVLM(tmp_path, manifest, vlm.inputs, ["CPUExecutionProvider"])

    return run


def guard(make_adapter, op: str, threshold: float = 0.0, seed: int = 7) -> Adapter:
    """Reads blocks 0 and 1 beside block 2, which it pushes."""
    info = make_adapter().info
    width, random = info.base.d_model, torch.Generator().manual_seed(seed)
    tensors = {
        "weight": torch.randn(3 * width, generator=random) * 0.3,
        "bias": torch.tensor(0.1),
        "threshold": torch.tensor(threshold),
        "direction": torch.randn(width, generator=random),
        "alpha": torch.tensor(1.5),
    }
    gate = "once" if op == "ProbedPush" else "per-token"
    site, *reads = map(Site.block, (2, 0, 1))
    return Adapter(info, (Intervention(op, site, "last", "both", tensors, gate, tuple(reads)),))


@torch.inference_mode()
def trajectory(vlm, adapter: Adapter) -> np.ndarray:
    """The margins that PyTorch hands on at each call, [calls, rows], and the tokens it fed, [calls, rows]."""
    found, fed, cache = [], [], DynamicCache()
    with vlm.applied(adapter) as hooks:
        logits, inputs = vlm.prefill(MIXED, cache)
        mask = torch.from_numpy(inputs.attention_mask)
        for _ in range(STEPS):
            found.append(hooks.scores["0.score"].numpy())
            chosen = logits[:, -1:].argmax(-1)
            fed.append(chosen[:, 0].numpy())
            mask = torch.cat([mask, torch.ones_like(chosen)], 1)
            logits = vlm.step(chosen, mask, cache)
    return np.stack(found), np.stack(fed)


def splitting(vlm, make_adapter, op: str) -> Adapter:
    """With a threshold that some rows reach at the prompt, some later, some never."""
    closed, _ = trajectory(vlm, guard(make_adapter, op, 1e6))
    highest = np.sort((closed + 1e6).max(0))
    return guard(make_adapter, op, float((highest[0] + highest[1]) / 2))


ARMS = [("RampedPush", "inputs"), ("ProbedPush", "inputs"), ("ProbedPush", "cache")]


@pytest.mark.parametrize(("op", "state"), ARMS)
def test_margins_and_logits_are_the_same_at_every_step(vlm, export, make_adapter, op, state):
    adapter = splitting(vlm, make_adapter, op)
    onnx_vlm = export(adapter, gate_state=state)
    margins, fed = trajectory(vlm, adapter)
    assert 0 < (margins > 0).mean() < 1
    decoding = onnx_vlm.prefill_requests(MIXED)
    for expected, tokens in zip(margins, fed, strict=True):
        found = decoding.scores["0.score"]
        if state == "inputs":
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert ((found > 0) == (expected > 0)).all()
        decoding = onnx_vlm.step(decoding, tokens)
    bare = compare_logits(vlm, onnx_vlm, MIXED, STEPS).logits
    with vlm.applied(adapter):
        gap = compare_logits(vlm, onnx_vlm, MIXED, STEPS).logits
    assert gap.error <= 1e-5 + 2e-6 * gap.scale and bare.error > 100 * gap.error
    for _, op_gap, invariant in check_ops(onnx_vlm.path, onnx_vlm.manifest, place([adapter])):
        assert op_gap.error < 2e-6 and invariant.error < 2e-6


def test_parity_counts_a_gate_that_another_step_opens(vlm, base_folder, export, make_adapter):
    adapter = splitting(vlm, make_adapter, "RampedPush")
    onnx_vlm = export(adapter)
    check_parity(vlm, onnx_vlm, [adapter], base=OnnxVLM.from_pretrained(base_folder), steps=4).require()
    (item,) = adapter.interventions
    moved = dataclasses.replace(item, tensors={**item.tensors, "threshold": item.tensors["threshold"] + 0.5})
    report = check_parity(vlm, onnx_vlm, [dataclasses.replace(adapter, interventions=(moved,))], steps=4)
    assert not report.passed
    assert any(check.kind == "gates" and not check.passed for check in report.checks)


def test_a_probe_of_several_blocks_gives_the_same_risk(vlm, export, make_probe):
    adapter = make_probe("decoder.layers.2")
    (item,) = adapter.interventions
    weight = torch.cat([item.tensors["weight"], -0.5 * item.tensors["weight"]])
    item = dataclasses.replace(item, tensors={**item.tensors, "weight": weight}, reads=(Site.block(0),))
    adapter = dataclasses.replace(adapter, interventions=(item,))
    onnx_vlm = export(adapter, mode="hot-swap")
    with vlm.applied(adapter) as hooks:
        vlm.prefill(MIXED)
    np.testing.assert_allclose(onnx_vlm.prefill_requests(MIXED).extras["risk"], hooks.extras["risk"], atol=1e-4)
    ((_, gap, _),) = check_ops(onnx_vlm.path, onnx_vlm.manifest, place([adapter]))
    assert gap.error < 2e-6 * gap.scale
    assert onnx_vlm.manifest.interventions[0].reads == ("decoder.layers.0",)


def test_a_swapped_guard_must_read_the_same_blocks(export, make_adapter, tmp_path):
    onnx_vlm = export(guard(make_adapter, "RampedPush"), mode="hot-swap")
    onnx_vlm.swap(guard(make_adapter, "RampedPush", 0.5, seed=8))
    assert isinstance(onnx_vlm.swapped, Swap)
    (item,) = guard(make_adapter, "RampedPush").interventions
    for reads in (item.reads[:1], ()):
        fewer = dataclasses.replace(item, reads=reads)
        with pytest.raises(UsageError, match="the further sites read of intervention 0"):
            onnx_vlm.swap(Adapter(make_adapter().info, (fewer,)))


def test_a_branch_beside_an_op_that_reads_several_blocks_is_refused(vlm, make_adapter, make_detector):
    with (
        pytest.raises(UsageError, match="reads several blocks, and the detector's branch"),
        vlm.applied(guard(make_adapter, "RampedPush"), make_detector()),
    ):
        pass
