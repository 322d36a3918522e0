"""CARE's ops, baked: every fusion of a fitted adapter does in ONNX Runtime what its hooks do in PyTorch."""

import pytest
import torch

from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.care.settings import CARE
from safetykit.adapters.care.statistics import MODALITIES, ROLES, CareStatistics
from safetykit.adapters.statistics.moments import Moments
from safetykit.export.manifest import read_manifest
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.parity.exposed import require_movement
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base, place

MIXED = parity_requests()["4 rows padded, mixed"]
FUSIONS = ("adaptive", "sequential", "parallel", "masked", "injection")


@pytest.fixture(scope="module")
def statistics(vlm):
    """States of the size of the model's own, drawn: what an op does to them does not depend on what they mean."""
    generator, moments = torch.Generator().manual_seed(0), {}
    for kind in ("mlp", "block"):
        for layer in range(vlm.base.n_layers):
            for modality in MODALITIES:
                for role in ROLES:
                    moments[Site(kind, layer), modality, role] = Moments(vlm.base.d_model)
                    root = torch.randn(vlm.base.d_model, vlm.base.d_model, generator=generator) / 4
                    draws = torch.randn(60, vlm.base.d_model, generator=generator) @ root
                    moments[Site(kind, layer), modality, role].update(draws + 1)
    return CareStatistics(moments)


@pytest.fixture
def baked(vlm, base_folder, tmp_path):
    def run(*adapters):
        base = read_manifest(base_folder)
        copy_base(base_folder, tmp_path, base)
        manifest = adapt(tmp_path, base, adapters)
        require_movement(tmp_path, manifest, place(adapters))
        return OnnxVLM(tmp_path, manifest, vlm.inputs, ["CPUExecutionProvider"])

    return run


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(
    "care",
    [
        CARE(layers=(0, 2), rank=3, alpha=0.8, site="block"),
        pytest.param(CARE(layers=(1,), rank=3, alpha=1.0, site="mlp"), marks=pytest.mark.slow),
        pytest.param(CARE(variant="official", layers=(1, 2), rank=3, alpha=4.5), marks=pytest.mark.slow),
    ],
    ids=["corrected at blocks", "corrected at an MLP", "official"],
)
def test_a_baked_fusion_does_what_the_hooks_do(vlm, baked, statistics, fusion, care):
    given = {"beta": 0.5} if fusion == "injection" else {}
    adapter = care.but(fusion=fusion, **given).solve(vlm, statistics, [])
    exported = baked(adapter)
    bare = compare_logits(vlm, exported, MIXED, 4).logits
    with vlm.applied(adapter):
        gap = compare_logits(vlm, exported, MIXED, 4).logits
    assert gap.error <= 1e-5 + 2e-6 * gap.scale
    assert bare.error > 100 * gap.error, "the adapter should matter here"
