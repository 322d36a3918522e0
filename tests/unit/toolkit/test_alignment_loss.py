"""The losses: every term has the gradient it should have, and the released code's trap has none."""

from __future__ import annotations

import copy

import pytest
import torch

from safetykit.adapters.tga.settings import TGA
from safetykit.toolkit.alignment.batches import Batches
from safetykit.toolkit.alignment.forward import PictureFeatures
from safetykit.toolkit.alignment.loss import answer_loss, guide_loss, opening_loss, pooled, request_loss
from safetykit.toolkit.alignment.targets import trained
from safetykit.toolkit.alignment.trainer import Losses, TextStates, schedule
from safetykit.toolkit.data.captions import captions_path, load_captions
from safetykit.toolkit.model.features import FeatureCache
from safetykit.toolkit.model.parts import Parts

TERMS = {
    "guide": {"guide_weight": 1.0},
    "guide without centring": {"guide_weight": 1.0, "centred": False},
    "guide without retrieval": {"guide_weight": 1.0, "retrieval": False},
    "request": {"request_weight": 1.0},
    "opening": {"opening_weight": 1.0},
    "answer": {"ce_weight": 1.0},
}
NONE = {"guide_weight": 0.0, "request_weight": 0.0, "opening_weight": 0.0, "ce_weight": 0.0}


@pytest.fixture(scope="module")
def double_vlm(random_vlm):
    vlm = copy.copy(random_vlm)
    vlm.model = copy.deepcopy(random_vlm.model).double()
    vlm.parts, vlm.features = Parts.find(vlm.model), FeatureCache(vlm.model)
    return vlm


@pytest.fixture(scope="module")
def captions():
    return load_captions(captions_path("reference"))[::160]


@pytest.mark.slow
@pytest.mark.parametrize("term", TERMS)
def test_each_term_has_the_gradient_of_finite_differences_at_the_projector(double_vlm, captions, term):
    settings = TGA(variant="projector", layers=(1, 5), **{**NONE, **TERMS[term]})
    generator = torch.Generator().manual_seed(3)

    def drawn():
        shape = (len(captions), 128)
        return {layer: torch.randn(shape, generator=generator, dtype=torch.float64) for layer in settings.layers}

    centre = {layer: (0.1 * rows.mean(0), 0.1 * rows.mean(0)) for layer, rows in drawn().items()}
    texts = TextStates(drawn(), drawn(), centre)
    features = PictureFeatures(double_vlm, captions)
    batches = Batches(double_vlm.inputs, captions, [""] * len(captions), size=3, seed=0, shuffled=0.0, prefixed=0.0)
    with trained(double_vlm, settings) as target:
        losses = Losses(double_vlm, settings, features, texts, target)
        batch = batches(0)

        def value() -> torch.Tensor:
            return losses.weighted(losses(batch))

        value().backward()
        for parameter in target.parameters.values():
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            slope = (parameter.grad * direction).sum().item()
            assert abs(slope) > 1e-3
            eps, ends = 1e-4, []  # smaller ones drown: the decoder's norms are float32 in any model
            with torch.no_grad():
                for sign in (1, -1):
                    parameter.add_(sign * eps * direction)
                    ends.append(value().item())
                    parameter.sub_(sign * eps * direction)
            assert slope == pytest.approx((ends[0] - ends[1]) / (2 * eps), rel=3e-3, abs=1e-5)


def test_a_guide_that_went_through_a_python_float_trains_nothing():
    image = torch.randn(4, 8, requires_grad=True)
    caption, retrieved = torch.randn(4, 8), torch.randn(4, 8)
    near = torch.nn.functional.cosine_similarity(image, caption, dim=-1).mean()
    trapped = torch.tensor(-near.item(), requires_grad=True) + 0 * image.sum()
    trapped.backward()
    assert image.grad.abs().max() == 0
    image.grad = None
    guide_loss(image, caption, retrieved).backward()
    assert image.grad.abs().min() > 0


def test_the_guide_is_the_papers_formula():
    image, caption, retrieved = torch.randn(3, 5, 8).double()
    near = (image * caption).sum(-1) / image.norm(dim=-1) / caption.norm(dim=-1)
    bar = (retrieved * caption).sum(-1) / retrieved.norm(dim=-1) / caption.norm(dim=-1)
    wanted = (-near + (1 + (-(near - bar)).exp()).log()).mean()
    assert guide_loss(image, caption, retrieved) == pytest.approx(wanted.item())
    assert guide_loss(image, caption) == pytest.approx(-near.mean().item())


def test_the_centred_guide_does_not_reward_what_all_captions_share():
    shared = 100 * torch.ones(8)
    caption = torch.randn(6, 8) + shared
    image = torch.randn(6, 8) + shared
    assert guide_loss(image, caption) < -0.95
    assert guide_loss(image, caption, centre=(shared, shared)) > -0.7


def test_targets_get_no_gradient():
    twin = torch.randn(2, 3, 8, requires_grad=True)
    mask = torch.ones(2, 3, dtype=torch.bool)
    request_loss(torch.randn(2, 3, 8, requires_grad=True), twin, mask).backward()
    logits = torch.randn(2, 9, requires_grad=True)
    opening_loss(torch.randn(2, 9, requires_grad=True), logits).backward()
    assert twin.grad is None and logits.grad is None


def test_the_request_loss_is_zero_on_equal_states_and_one_at_the_mean():
    twin = torch.randn(2, 3, 8)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert request_loss(twin, twin, mask) == 0
    assert request_loss(twin[mask].mean(0).expand_as(twin), twin, mask) == pytest.approx(1, rel=1e-5)


def test_rows_without_an_answer_cost_nothing():
    logits = torch.randn(2, 4, 9, requires_grad=True)
    tokens = torch.randint(9, (2, 4))
    none = torch.zeros(2, 4, dtype=torch.bool)
    assert answer_loss(logits, tokens, none) == 0
    one = none.clone()
    one[0, 2:] = True
    wanted = torch.nn.functional.cross_entropy(logits[0, 1:3], tokens[0, 2:])
    assert answer_loss(logits, tokens, one).item() == pytest.approx(wanted.item())


def test_pooling_ignores_what_is_masked():
    states = torch.randn(2, 4, 8)
    mask = torch.tensor([[False, True, True, False], [False, False, False, False]])
    assert torch.allclose(pooled(states, mask)[0], states[0, 1:3].mean(0))
    assert (pooled(states, mask)[1] == 0).all()


def test_the_rate_warms_up_and_decays():
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) < 1 and rates[-1] == pytest.approx(0.01)
    assert rates.index(max(rates)) == 4
