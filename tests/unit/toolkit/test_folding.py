"""A folded adapter is the hooked one: the same logits, and no op left."""

from dataclasses import replace

import pytest
import torch
from affine import adapter_of, projection
from PIL import Image
from torch import nn

from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import UsageError
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.folding import find_writers, fold, fold_all
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.updates import updated

WIDTH = 128
PICTURE = Image.new("RGB", (48, 48), (200, 30, 30))
REQUESTS = [Request("what is this ?", PICTURE), Request("how do i use it ?"), Request("is it dangerous ?", PICTURE)]


def logits(vlm) -> torch.Tensor:
    """Of unpadded positions: those of padding mean nothing."""
    values, inputs = vlm.prefill(REQUESTS)
    return values[torch.from_numpy(inputs.attention_mask).bool()]


def assert_same_as_hooks(vlm, adapter, folded):
    bare = logits(vlm)
    with vlm.applied(adapter):
        hooked = logits(vlm)
    with updated(vlm, folded.updates):
        ours = logits(vlm)
    scale = hooked.abs().max()
    assert (ours - hooked).abs().max() <= 3e-6 * scale
    assert (bare - hooked).abs().max() > 1e-2 * scale, "the adapter should matter here"
    assert torch.equal(logits(vlm), bare)


@pytest.mark.parametrize("site", ["decoder.layers.0.mlp", "decoder.layers.5.attn", "decoder.layers.7.mlp"])
@pytest.mark.parametrize("orthonormal", [True, False])
@pytest.mark.parametrize("strength", [1.0, 4.5])
def test_folding_is_hooking(random_vlm, site, orthonormal, strength):
    adapter = adapter_of(random_vlm.base, projection(site, WIDTH, orthonormal=orthonormal, strength=strength))
    assert_same_as_hooks(random_vlm, adapter, fold(random_vlm, adapter))


def test_two_interventions_at_one_site_act_in_order(random_vlm):
    first = projection("decoder.layers.2.mlp", WIDTH, strength=0.7, seed=1)
    second = projection("decoder.layers.2.mlp", WIDTH, strength=1.6, seed=2, orthonormal=False)
    adapter = adapter_of(random_vlm.base, first, second)
    folded = fold(random_vlm, adapter)
    assert_same_as_hooks(random_vlm, adapter, folded)
    swapped = fold(random_vlm, adapter_of(random_vlm.base, second, first))
    with updated(random_vlm, folded.updates):
        ours = logits(random_vlm)
    with updated(random_vlm, swapped.updates):
        assert (logits(random_vlm) - ours).abs().max() > 1e-3 * ours.abs().max(), "the order should matter here"


def test_every_layer_and_both_branches_at_once(random_vlm):
    sites = [f"decoder.layers.{layer}.{branch}" for layer in range(8) for branch in ("attn", "mlp")]
    adapter = adapter_of(random_vlm.base, *(projection(site, WIDTH, seed=at) for at, site in enumerate(sites)))
    assert_same_as_hooks(random_vlm, adapter, fold(random_vlm, adapter))


def test_generation_is_the_same(random_vlm):
    adapter = adapter_of(random_vlm.base, *(projection(f"decoder.layers.{at}.mlp", WIDTH, seed=at) for at in range(8)))
    with random_vlm.applied(adapter):
        hooked = random_vlm.generate(REQUESTS, 6)
    with updated(random_vlm, fold(random_vlm, adapter).updates):
        assert [one.token_ids for one in random_vlm.generate(REQUESTS, 6)] == [one.token_ids for one in hooked]


def test_a_layer_that_has_a_bias_keeps_it(random_vlm):
    """b' = b + U(D b) + s."""
    layer = "model.language_model.layers.4.mlp.down_proj"
    own = WeightUpdate(f"{layer}.bias", {"value": torch.randn(WIDTH, generator=torch.Generator().manual_seed(9))})
    adapter = adapter_of(random_vlm.base, projection("decoder.layers.4.mlp", WIDTH, seed=3))
    with updated(random_vlm, [own]):
        assert_same_as_hooks(random_vlm, adapter, fold(random_vlm, adapter))


def test_updates_of_the_adapter_come_before_its_interventions(random_vlm):
    layer = "model.language_model.layers.4.mlp.down_proj"
    generator = torch.Generator().manual_seed(4)
    up, down = torch.randn(WIDTH, 3, generator=generator), 0.1 * torch.randn(3, 384, generator=generator)
    own = WeightUpdate(f"{layer}.weight", {"up": up, "down": down})
    plain = adapter_of(random_vlm.base, projection("decoder.layers.4.mlp", WIDTH, seed=3))
    folded = fold(random_vlm, replace(plain, updates=(own,)))
    assert folded.updates[0] is own
    with updated(random_vlm, [own]), random_vlm.applied(plain):
        hooked = logits(random_vlm)
    with updated(random_vlm, folded.updates):
        assert (logits(random_vlm) - hooked).abs().max() <= 3e-6 * hooked.abs().max()


def test_the_result_is_low_rank_and_holds_no_op(random_vlm):
    adapter = adapter_of(random_vlm.base, projection("decoder.layers.6.mlp", WIDTH, rank=6))
    folded = fold(random_vlm, adapter)
    weight, bias = folded.updates
    assert folded.interventions == ()
    assert (weight.parameter, bias.parameter) == tuple(
        f"model.language_model.layers.6.mlp.down_proj.{name}" for name in ("weight", "bias")
    )
    assert weight.tensors["up"].shape == (WIDTH, 6) and weight.tensors["down"].shape == (6, 384)
    assert folded.info.hyperparameters == {"strength": 1.0, "folded_sites": ["decoder.layers.6.mlp"]}
    assert folded.info.base == adapter.info.base
    assert adapter.info.hyperparameters == {"strength": 1.0}


def test_without_a_shift_no_bias_appears(random_vlm):
    adapter = adapter_of(random_vlm.base, projection("decoder.layers.6.mlp", WIDTH, centred=False))
    (weight,) = fold(random_vlm, adapter).updates
    assert weight.parameter.endswith("down_proj.weight")


def test_a_saved_folded_adapter_is_read_back(random_vlm, tmp_path):
    folded = fold(random_vlm, adapter_of(random_vlm.base, projection("decoder.layers.6.mlp", WIDTH)))
    read = type(folded).load(folded.save(tmp_path / "adapter"))
    for ours, theirs in zip(folded.updates, read.updates, strict=True):
        assert ours.parameter == theirs.parameter
        assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)


def test_the_writer_is_found_whatever_it_is_called(random_vlm, monkeypatch):
    class Renamed(nn.Module):
        def __init__(self, mlp):
            super().__init__()
            self.first, self.strange = mlp.gate_proj, mlp.down_proj

        def forward(self, x):
            return self.strange(self.first(x))

    layer = random_vlm.parts.layers[3]
    monkeypatch.setitem(layer._modules, "mlp", Renamed(layer.mlp))
    site = Site.parse("decoder.layers.3.mlp")
    assert find_writers(random_vlm, [site]) == {site: "model.language_model.layers.3.mlp.strange"}


def test_a_branch_that_ends_in_no_linear_layer_is_refused(random_vlm, monkeypatch):
    layer = random_vlm.parts.layers[3]
    monkeypatch.setitem(layer._modules, "mlp", nn.Sequential(layer.mlp, nn.Tanh()))
    adapter = adapter_of(random_vlm.base, projection("decoder.layers.3.mlp", WIDTH))
    with pytest.raises(UsageError, match=r"decoder.layers.3.mlp \(Sequential\) is not that of one linear.*--mode bake"):
        fold(random_vlm, adapter)


def gated() -> Intervention:
    basis = torch.linalg.qr(torch.randn(WIDTH, 2))[0]
    tensors = {"basis": basis, "mean": torch.zeros(WIDTH), "gate": basis[:, 0].contiguous()}
    tensors |= {"threshold": torch.tensor(0.0), "alpha": torch.tensor(1.0)}
    return Intervention("GatedSteering", Site.parse("decoder.layers.1.mlp"), "all", "both", tensors)


def test_what_cannot_be_folded_is_named_with_its_reason(random_vlm):
    items = [
        projection("decoder.layers.0.mlp", WIDTH),
        gated(),
        projection("decoder.layers.2", WIDTH),
        projection("decoder.layers.3.attn", WIDTH, scope="vision"),
        projection("decoder.layers.4.mlp", WIDTH, phase="prefill"),
    ]
    with pytest.raises(UsageError) as caught:
        fold(random_vlm, adapter_of(random_vlm.base, *items))
    for part in (
        "4 of 5 interventions cannot be folded",
        "intervention 1 (GatedSteering at decoder.layers.1.mlp) is not affine",
        "intervention 2 (SubspaceProjection at decoder.layers.2) acts on a sum",
        "intervention 3 (SubspaceProjection at decoder.layers.3.attn) touches the tokens of scope vision only",
        "intervention 4 (SubspaceProjection at decoder.layers.4.mlp) acts in phase prefill only",
        "Export with --mode bake",
    ):
        assert part in str(caught.value)
    assert "intervention 0" not in str(caught.value)


def test_nothing_to_fold_is_refused(random_vlm):
    with pytest.raises(UsageError, match="nothing to fold"):
        fold(random_vlm, adapter_of(random_vlm.base))


def test_stacked_adapters_fold_to_what_they_do_together(random_vlm):
    """The second is folded into what the first made of the same weight, and its own updates come before both."""
    layer = "model.language_model.layers.2.mlp.down_proj"
    generator = torch.Generator().manual_seed(8)
    tensors = {"up": torch.randn(WIDTH, 2, generator=generator), "down": 0.1 * torch.randn(2, 384, generator=generator)}
    own = WeightUpdate(f"{layer}.weight", tensors)
    first = adapter_of(random_vlm.base, projection("decoder.layers.2.mlp", WIDTH, strength=0.8, seed=1))
    second = replace(
        adapter_of(random_vlm.base, projection("decoder.layers.2.mlp", WIDTH, strength=1.7, seed=2)), updates=(own,)
    )
    plain = replace(adapter_of(random_vlm.base), updates=())
    folded = fold_all(random_vlm, [first, plain, second])
    assert folded[1] is plain
    with updated(random_vlm, [own]), random_vlm.applied(first, replace(second, updates=())):
        hooked = logits(random_vlm)
    with updated(random_vlm, [update for one in folded for update in one.updates]):
        assert (logits(random_vlm) - hooked).abs().max() <= 3e-6 * hooked.abs().max()


def test_a_new_value_after_a_fold_is_refused(random_vlm):
    value = WeightUpdate("model.language_model.layers.2.mlp.down_proj.weight", {"value": torch.zeros(WIDTH, 384)})
    first = adapter_of(random_vlm.base, projection("decoder.layers.2.mlp", WIDTH))
    second = replace(adapter_of(random_vlm.base), updates=(value,))
    with pytest.raises(UsageError, match="test gives .*down_proj.weight a new value.*Give test first"):
        fold_all(random_vlm, [first, second])
    folded = fold_all(random_vlm, [second, first])
    assert len(folded[1].updates) == 2


@pytest.mark.parametrize("site", ["mlp", "attn"])
def test_vlm_guards_orthogonal_variant_folds_where_a_branch_writes(random_vlm, site):
    """At a block's output nothing writes alone; there, and behind a gate, an adapter stays an op."""
    records = load_records(data_path("reference"), ["fit", "calibration"])
    few = subset([record for record in records if record.split == "fit" and record.carrier == "text"], 24)
    few += subset([record for record in records if record.split == "calibration"], 24)
    settings = {"variant": "orthogonal", "layers": (2, 5), "scope": "all", "phase": "both"}
    adapter = VLMGuard(**settings, site=site).fit(random_vlm, few)
    assert [str(item.site) for item in adapter.interventions] == [f"decoder.layers.{at}.{site}" for at in (2, 5)]
    folded = fold(random_vlm, adapter)
    assert folded.updates and not folded.interventions
    assert_same_as_hooks(random_vlm, adapter, folded)
    with pytest.raises(UsageError):
        fold(random_vlm, VLMGuard(**settings).fit(random_vlm, few))
