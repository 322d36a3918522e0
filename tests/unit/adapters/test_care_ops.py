"""CARE's ops do what their formulas say, and say it as affine maps where they are some."""

import pytest
import torch

from safetykit.adapters.care.ops import fusion_weights
from safetykit.adapters.ops.affine import AffineMap
from safetykit.adapters.ops.op import get_op

D, BATCH, SEQ = 16, 3, 5
ONES = torch.ones(BATCH, SEQ, 1)
PAIR = ("AdaptiveProjection", "ParallelProjection")
AFFINE = ("ParallelProjection", "BenignInjection", "SubspaceProjection")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def orthonormal(rank, seed=0):
    return torch.linalg.qr(draw(D, rank, seed=seed))[0]


def skewed(rank, seed=0):
    """Columns of length 1 that are not orthogonal, as in the official variant."""
    return torch.nn.functional.normalize(draw(D, rank, seed=seed), dim=0)


def arguments(name, basis=orthonormal, alpha=1.0, rank=3):
    strength = torch.tensor(alpha)
    drawn = (basis(rank, seed=1), draw(D, seed=2))
    if name in PAIR:
        drawn += (basis(rank + 1, seed=3), draw(D, seed=4))
    return dict(zip(get_op(name).params, (*drawn, strength), strict=True))


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("basis", [orthonormal, skewed])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 4.5])
def test_an_affine_op_is_the_map_it_claims_to_be(name, basis, alpha):
    op, tensors, hidden = get_op(name), arguments(name, basis, alpha), 5 * draw(BATCH, SEQ, D, seed=9)
    assert torch.allclose(op(hidden, ONES, **tensors)[0], op.affine(**tensors)(hidden), atol=1e-4)


def test_an_op_that_is_not_affine_claims_no_map():
    assert get_op("AdaptiveProjection").affine(**arguments("AdaptiveProjection")) is None
    assert get_op("GatedSteering").affine() is None


def test_one_affine_map_after_the_other_is_their_composition():
    maps = [AffineMap(draw(D, r, seed=r), draw(r, D, seed=r + 10), draw(D, seed=r + 20)).double() for r in (2, 3, 4)]
    hidden = draw(7, D, seed=5).double()
    whole = maps[0].then(maps[1]).then(maps[2])
    assert torch.allclose(whole(hidden), maps[2](maps[1](maps[0](hidden))), rtol=1e-10)
    assert whole.up.shape == (D, 9)


@pytest.mark.parametrize("name", [*PAIR, "BenignInjection", "SubspaceProjection"])
@pytest.mark.parametrize("basis", [orthonormal, skewed])
@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_the_invariant_holds_and_notices_another_state(name, basis, alpha):
    op, tensors, hidden = get_op(name), arguments(name, basis, alpha), 5 * draw(BATCH, SEQ, D, seed=9)
    after, *_ = op(hidden, ONES, **tensors)
    assert op.invariant(hidden, after, ONES, **tensors) < 1e-5
    assert op.invariant(hidden, after + 0.1 * draw(BATCH, SEQ, D, seed=8), ONES, **tensors) > 1e-3


@pytest.mark.parametrize("name", [*PAIR, "BenignInjection"])
def test_tokens_outside_the_scope_stay_bit_identical(name):
    hidden, scope = draw(BATCH, SEQ, D, seed=9), (torch.arange(SEQ) < 2).float()[None, :, None].expand(BATCH, -1, 1)
    after, *_ = get_op(name)(hidden, scope, **arguments(name))
    assert torch.equal(after[:, 2:], hidden[:, 2:])
    assert not torch.equal(after[:, :2], hidden[:, :2])


def test_adaptive_weights_are_shares_that_add_up_to_one():
    visual, textual = draw(BATCH, SEQ, D, seed=1), 3 * draw(BATCH, SEQ, D, seed=2)
    weight, other = fusion_weights(visual, textual), fusion_weights(textual, visual)
    assert torch.allclose(weight + other, torch.ones(BATCH, SEQ, 1))
    assert ((weight >= 0) & (weight <= 1)).all()
    expected = visual.norm(dim=-1) / (visual.norm(dim=-1) + textual.norm(dim=-1))
    assert torch.allclose(weight.squeeze(-1), expected)
    nothing = torch.zeros(BATCH, SEQ, D)
    assert torch.equal(fusion_weights(nothing, nothing), torch.full((BATCH, SEQ, 1), 0.5))
    assert torch.equal(fusion_weights(nothing, visual), torch.zeros(BATCH, SEQ, 1))


def test_adaptive_fusion_is_the_weighted_sum_and_finite_at_both_means():
    tensors, hidden = arguments("AdaptiveProjection", alpha=2.0), draw(BATCH, SEQ, D, seed=9)
    visual, mean, textual, _, _ = tensors.values()
    tensors["textual_mean"] = mean
    hidden[0, 0] = mean
    after, *_ = get_op("AdaptiveProjection")(hidden, ONES, **tensors)
    assert torch.equal(after[0, 0], mean)
    deltas = [-2 * (hidden - mean) @ basis @ basis.T for basis in (visual, textual)]
    sizes = [delta.norm(dim=-1, keepdim=True) for delta in deltas]
    expected = hidden + sum(size / (sizes[0] + sizes[1]) * delta for size, delta in zip(sizes, deltas, strict=True))
    assert torch.allclose(after[1:], expected[1:], atol=1e-5)


def test_with_orthogonal_subspaces_parallel_is_sequential():
    both = orthonormal(6)
    first, second, means = both[:, :3], both[:, 3:], (draw(D, seed=2), draw(D, seed=3))
    alpha, hidden = torch.tensor(1.7), draw(BATCH, SEQ, D, seed=9)
    project, parallel = get_op("SubspaceProjection"), get_op("ParallelProjection")
    halfway = project(hidden, ONES, basis=first, mean=means[0], beta=alpha)[0]
    one_by_one = project(halfway, ONES, basis=second, mean=means[1], beta=alpha)[0]
    tensors = {"visual_basis": first, "visual_mean": means[0], "textual_basis": second, "textual_mean": means[1]}
    together = parallel(hidden, ONES, **tensors, alpha=alpha)[0]
    assert torch.allclose(one_by_one, together, atol=1e-5)
    skew = parallel(hidden, ONES, **tensors | {"textual_basis": (first + second) / 2**0.5}, alpha=alpha)[0]
    assert not torch.allclose(one_by_one, skew, atol=1e-1)


def test_injection_with_beta_one_is_a_fixed_point_at_the_benign_component():
    tensors = arguments("BenignInjection")
    basis, benign, _ = tensors.values()
    op, hidden = get_op("BenignInjection"), draw(BATCH, SEQ, D, seed=9)
    once, *_ = op(hidden, ONES, **tensors)
    assert torch.allclose(once @ basis, (benign @ basis).expand(BATCH, SEQ, -1), atol=1e-5)
    assert torch.allclose(op(once, ONES, **tensors)[0], once, atol=1e-5)
    outside = torch.eye(D) - basis @ basis.T
    assert torch.allclose(once @ outside, hidden @ outside, atol=1e-5)


@pytest.mark.parametrize("name", [*PAIR, "BenignInjection"])
def test_half_precision_states_are_corrected_in_float32(name):
    """A state of 900 leaves 0.03 in the subspace when the projection itself is done in half precision."""
    hidden = (900 + draw(BATCH, SEQ, D, seed=9)).half()
    after, *_ = get_op(name)(hidden, ONES, **arguments(name))
    assert after.dtype == torch.float16
    exact, *_ = get_op(name)(hidden.double(), ONES, **arguments(name))
    assert (after.double() - exact).abs().max() <= 0.5 * 2**-10 * exact.abs().max()
