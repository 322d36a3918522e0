"""Branch sites are what joins the residual stream: input + attention + MLP is each block's output."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GraniteConfig

from safetykit.adapters import Adapter, Intervention, Site
from safetykit.adapters.artifact.manifest import AdapterInfo, DataInfo
from safetykit.adapters.errors import UsageError
from safetykit.bench.zoo import WIDTH
from safetykit.bench.zoo.llavas import llava_of
from safetykit.export.pipeline.export import export_onnx
from safetykit.toolkit.families import Family
from safetykit.toolkit.model.branches import Branches
from safetykit.toolkit.model.folding import fold
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

_MULTIPLIER = 0.22


@pytest.fixture(scope="module")
def granite(tmp_path_factory) -> VLM:
    """A LLaVA whose decoder multiplies its branches by a constant before it adds them."""
    folder = tmp_path_factory.mktemp("granite") / "model"
    llava_of(GraniteConfig, folder, residual_multiplier=_MULTIPLIER, attention_multiplier=0.3)
    return VLM.from_pretrained(folder)


def erasing(vlm: VLM, *sites: Site) -> Adapter:
    """Removes two directions at each site, about a mean that is not zero."""
    info = AdapterInfo(
        method="test",
        variant="test",
        sign_convention="none",
        hyperparameters={},
        seed=0,
        base=vlm.base,
        data=DataInfo(sha256="0" * 64, counts={}),
        versions={},
    )
    basis, _ = torch.linalg.qr(torch.randn(WIDTH, 2, generator=torch.Generator().manual_seed(3)))
    tensors = {"basis": basis, "mean": torch.linspace(-1, 1, WIDTH), "beta": torch.tensor(1.0)}
    items = [
        Intervention(
            "SubspaceProjection", site, "all", "both", {name: value.clone() for name, value in tensors.items()}
        )
        for site in sites
    ]
    return Adapter(info, tuple(items))


def joined(vlm: VLM, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Input + attention + MLP of a block by its sites, and its output."""
    seen: dict[str, torch.Tensor] = {}
    block = vlm.parts.layers[layer]
    handles = [
        vlm.parts.tap(Site(kind, layer)).read(lambda state, kind=kind: seen.update({kind: state}))
        for kind in ("attn", "mlp", "block")
    ]
    handles.append(block.register_forward_pre_hook(lambda _, args: seen.update(given=args[0])))
    vlm.prefill([Request("what is this ?")])
    for handle in handles:
        handle.remove()
    return seen["given"] + seen["attn"] + seen["mlp"], seen["block"]


def test_branches_of_granite_are_multiplied_by_its_constant(granite):
    assert granite.parts.tap(Site("mlp", 0)).factor == _MULTIPLIER
    for layer in range(2):
        torch.testing.assert_close(*joined(granite, layer), rtol=0, atol=2e-6)


def test_folded_and_exported_granite_computes_what_hooks_do(granite, tmp_path):
    adapter = erasing(granite, Site("attn", 0), Site("mlp", 1))
    request = Request("what is this thing ?")
    with granite.applied(adapter):
        hooked, _ = granite.prefill([request])
    with granite.applied(fold(granite, adapter)):
        folded, _ = granite.prefill([request])
    plain, _ = granite.prefill([request])
    torch.testing.assert_close(folded, hooked, rtol=0, atol=2e-5)
    assert (hooked - plain).abs().max() > 0.1
    report = export_onnx(granite, [adapter], tmp_path / "export").parity
    assert report.passed


class _Block(nn.Module):
    """Adds ``own`` of what its branches give; a block of another kind where that is no sum."""

    def __init__(self, own) -> None:
        super().__init__()
        self.self_attn, self.mlp = nn.Linear(4, 4), nn.Linear(4, 4)
        self.post_norm, self.own = nn.LayerNorm(4), own

    def forward(self, hidden):
        return self.own(self, hidden)


def taps_of(own, dtype=torch.float32):
    torch.manual_seed(0)
    block = _Block(own).to(dtype)
    branches = Branches([block], Family(), lambda: block(torch.randn(1, 3, 4, dtype=dtype)), "Model")
    return block, branches.tap(Site("attn", 0)), branches.tap(Site("mlp", 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_that_ends_a_branch_is_its_site(dtype):
    def own(block, hidden):
        hidden = hidden + block.self_attn(hidden)
        return hidden + block.post_norm(block.mlp(hidden))

    block, attention, mlp = taps_of(own, dtype)
    assert attention.module is block.self_attn and mlp.module is block.post_norm


def test_parallel_branches_are_found():
    block, attention, mlp = taps_of(lambda block, hidden: block.mlp(hidden) + hidden + block.self_attn(hidden))
    assert attention.module is block.self_attn and mlp.module is block.mlp


@pytest.mark.parametrize(
    "own",
    [
        lambda block, hidden: block.post_norm(hidden + block.self_attn(hidden) + block.mlp(hidden)),
        lambda block, hidden: hidden + 0.3 * (block.self_attn(hidden) + block.mlp(hidden)),
    ],
)
def test_a_block_that_is_no_sum_of_its_branches_has_no_branch_sites(own):
    with pytest.raises(UsageError, match=r"no site decoder.layers.0.attn: input \+ attention \+ MLP is not the output"):
        taps_of(own)


def test_a_block_without_branches_has_no_sites_for_them():
    branches = Branches([nn.Linear(4, 4)], Family(), None, "Model")
    assert branches.sites(0) == []
    with pytest.raises(UsageError, match=r"layer 0 of Model \(Linear\) has no attention and MLP branches"):
        branches.tap(Site("mlp", 0))
