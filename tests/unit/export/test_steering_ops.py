"""Ops of steering methods and of HiddenDetect do in ONNX Runtime what their hooks do in PyTorch."""

import dataclasses

import numpy as np
import pytest
import torch
from affine import adapter_of

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.gate import gated_by
from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.manifest import DetectorInfo
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.hidden_detect.detect import tensors_of
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.parity.exposed import check_ops, require_movement
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base, place
from safetykit.toolkit.model.folding import fold
from safetykit.toolkit.model.second_pass import SecondPass

MIXED = parity_requests()["4 rows padded, mixed"]


@pytest.fixture
def baked(vlm, base_folder, tmp_path):
    def run(adapter):
        base = read_manifest(base_folder)
        copy_base(base_folder, tmp_path, base)
        manifest = adapt(tmp_path, base, [adapter])
        require_movement(tmp_path, manifest, place([adapter]))
        return OnnxVLM(tmp_path, manifest, vlm.inputs, ["CPUExecutionProvider"])

    return run


def steering(width, site, phase, strength, rank=2):
    generator = torch.Generator().manual_seed(3)
    up, down = (torch.randn(width, rank, generator=generator) / width**0.5 for _ in range(2))
    tensors = {"up": up, "down": down, "strength": torch.tensor(strength)}
    return Intervention("NullSpaceSteering", Site.parse(site), "all", phase, tensors)


def items(width, name):
    vector = torch.randn(width, generator=torch.Generator().manual_seed(1))
    return {
        "each phase its strength": [
            steering(width, "decoder.layers.1", phase, strength)
            for phase, strength in (("prefill", 0.5), ("decode", 2.0))
        ],
        "at an MLP": [steering(width, "decoder.layers.1.mlp", "both", 1.0, rank=1)],
        "addition": [
            Intervention(
                "DirectionAddition", Site.block(1), "all", "both", {"direction": vector, "strength": torch.tensor(0.5)}
            )
        ],
        "erasure": [
            Intervention("ConceptErasure", Site.parse(site), "all", phase, erasing(width))
            for site, phase in (("decoder.layers.1.mlp", "both"), ("decoder.layers.0", "prefill"))
        ],
    }[name]


def erasing(width):
    generator = torch.Generator().manual_seed(5)
    left, right, mean = (torch.randn(width, 1, generator=generator) for _ in range(3))
    right = right / right.norm()
    return {"left": left / (left.T @ right), "right": right, "mean": mean[:, 0], "beta": torch.tensor(1.0)}


@pytest.mark.parametrize("name", ["each phase its strength", "at an MLP", "addition", "erasure"])
def test_a_baked_push_does_what_the_hooks_do(vlm, baked, name):
    adapter = adapter_of(vlm.base, *items(vlm.base.d_model, name))
    exported = baked(adapter)
    bare = compare_logits(vlm, exported, MIXED, 4).logits
    with vlm.applied(adapter):
        gap = compare_logits(vlm, exported, MIXED, 4).logits
    assert gap.error <= 1e-5 + 2e-6 * gap.scale and bare.error > 100 * gap.error


@pytest.mark.parametrize("reads", [(), (Site.block(0),)])
def test_a_conditional_push_opens_for_the_same_prompts_and_stays_open(vlm, baked, reads):
    condition = torch.randn(vlm.base.d_model, generator=torch.Generator().manual_seed(2))
    with vlm.applied(adapter_of(vlm.base, conditional(condition, reads, 0.0))) as hooks:
        vlm.prefill(MIXED)
    scores = hooks.extras["0.score"].sort().values
    threshold = float(scores[1] + scores[2]) / 2  # open for two of four
    adapter = adapter_of(vlm.base, conditional(condition, reads, threshold))
    exported = baked(adapter)
    bare = compare_logits(vlm, exported, MIXED, 4).logits
    with vlm.applied(adapter) as hooks:
        gap = compare_logits(vlm, exported, MIXED, 4).logits
        vlm.prefill(MIXED)
    assert gap.error <= 1e-5 + 2e-6 * gap.scale and bare.error > 100 * gap.error
    opened = hooks.extras["0.score"] > 0
    assert opened.sum() == 2
    assert np.allclose(exported.prefill_requests(MIXED).extras["0.score"], hooks.extras["0.score"], atol=1e-5)


def conditional(condition, reads, threshold):
    width = len(condition)
    direction = torch.randn(width, generator=torch.Generator().manual_seed(4))
    tensors = {
        "weight": torch.cat([condition, torch.zeros(width * len(reads))]),
        "sense": torch.tensor(1.0),
        "threshold": torch.tensor(threshold),
        "direction": direction,
        "alpha": torch.tensor(1.0),
    }
    return Intervention("ConditionalAddition", Site.block(1), "all", "both", tensors, "held", reads)


@pytest.mark.parametrize("name", ["at an MLP", "erasure"])
def test_what_folds_does_the_same_in_the_weights(vlm, name):
    adapter = adapter_of(vlm.base, *items(vlm.base.d_model, name)[:1])
    folded = fold(vlm, adapter)
    found = [vlm.prefill(MIXED)[0]]
    for one in (adapter, folded):
        with vlm.applied(one):
            found.append(vlm.prefill(MIXED)[0])
    assert not folded.interventions
    assert torch.allclose(found[1], found[2], atol=1e-4) and not torch.allclose(found[0], found[1], atol=1e-2)


def test_the_risk_in_the_graph_is_the_cosine_of_the_logits(vlm, baked):
    source, last = SecondPass(vlm), Site.block(vlm.base.n_layers - 1)
    item = Intervention("RefusalCosine", last, "last", "prefill", tensors_of(source.head()[0], source.gain(), token=7))
    info = adapter_of(vlm.base, *items(vlm.base.d_model, "addition")).info
    adapter = Adapter(info, (item,), detector=DetectorInfo(threshold=0.0, refusal="no", refusal_token=7))
    logits = vlm.prefill(MIXED)[0][:, -1]
    wanted = (logits[:, 7] / logits.norm(dim=1)).detach().numpy()  # the model speaks from the last block's state
    with vlm.applied(adapter) as hooks:
        vlm.prefill(MIXED)
    for risk in (hooks.extras["risk"].numpy(), baked(adapter).prefill_requests(MIXED).extras["risk"]):
        assert np.allclose(risk, wanted, atol=1e-5)


def judge(vlm, threshold=0.0):
    """A probe of blocks 0 and 1."""
    width = vlm.base.d_model
    weight = torch.randn(2 * width, generator=torch.Generator().manual_seed(7)) * 0.3
    tensors = {"weight": weight, "bias": torch.tensor(0.1)}
    item = Intervention("LinearProbe", Site.block(1), "last", "prefill", tensors, reads=(Site.block(0),))
    detector = DetectorInfo(threshold=threshold, refusal="no", refusal_token=7)
    return Adapter(adapter_of(vlm.base).info, (item,), detector=detector)


def splitting(vlm):
    """Open for two of four prompts."""
    with vlm.applied(judge(vlm)) as hooks:
        vlm.prefill(MIXED)
    risks = hooks.extras["risk"].sort().values
    return judge(vlm, float(risks[1] + risks[2]) / 2)


def two_phases(width):
    return [steering(width, "decoder.layers.1", phase, by) for phase, by in (("prefill", 0.5), ("decode", 2.0))]


def later(width):
    return [steering(width, "decoder.layers.2", "both", 1.0)]


@pytest.mark.parametrize("pushes", [two_phases, later])
def test_gates_and_answers_are_those_of_the_hooks_and_closed_rows_those_of_the_base(
    vlm,
    base_folder,
    baked,
    tmp_path,
    pushes,
):
    adapter = gated_by(adapter_of(vlm.base, *pushes(vlm.base.d_model)), splitting(vlm))
    adapter = Adapter.load(adapter.save(tmp_path / "saved"))
    exported, bare = baked(adapter), OnnxVLM.from_pretrained(base_folder)
    report = check_parity(vlm, exported, [adapter], base=bare, steps=4)
    report.require()
    assert any(check.kind == "gates" for check in report.checks)
    for _, gap, invariant in check_ops(exported.path, exported.manifest, place([adapter])):
        assert gap.error < 2e-6 * max(gap.scale, 1) and invariant.error < 2e-6
    found, untouched = exported.prefill_requests(MIXED), bare.prefill_requests(MIXED)
    opened = found.extras["0.score"] > 0
    assert opened.sum() == 2
    tokens = np.full(4, 5)
    for _ in range(4):
        same = (found.logits == untouched.logits).reshape(4, -1).all(1)
        assert np.array_equal(same, ~opened)
        found, untouched = exported.step(found, tokens), bare.step(untouched, tokens)


def test_another_threshold_than_the_graphs_is_a_flipped_gate(vlm, baked):
    adapter = gated_by(adapter_of(vlm.base, *later(vlm.base.d_model)), splitting(vlm))
    (item,) = adapter.interventions
    moved = dataclasses.replace(item, tensors={**item.tensors, "threshold": item.tensors["threshold"] - 1e3})
    report = check_parity(vlm, baked(adapter), [dataclasses.replace(adapter, interventions=(moved,))], steps=2)
    assert any(check.kind == "gates" and not check.passed for check in report.checks)
