"""The ops of NullSteer, the refusal direction and HiddenDetect do in ONNX Runtime what their hooks do in PyTorch."""

import numpy as np
import pytest
import torch
from affine import adapter_of

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.manifest import DetectorInfo
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.hidden_detect.detect import tensors_of
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.parity.exposed import require_movement
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
    }[name]


@pytest.mark.parametrize("name", ["each phase its strength", "at an MLP", "addition"])
def test_a_baked_push_does_what_the_hooks_do(vlm, baked, name):
    adapter = adapter_of(vlm.base, *items(vlm.base.d_model, name))
    exported = baked(adapter)
    bare = compare_logits(vlm, exported, MIXED, 4).logits
    with vlm.applied(adapter):
        gap = compare_logits(vlm, exported, MIXED, 4).logits
    assert gap.error <= 1e-5 + 2e-6 * gap.scale and bare.error > 100 * gap.error


def test_what_folds_does_the_same_in_the_weights(vlm):
    adapter = adapter_of(vlm.base, *items(vlm.base.d_model, "at an MLP"))
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
