"""Safety subspaces: what was planted is found where the mathematics allows it, and shown where it is lost."""

import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.covariance import oas as sklearn_oas

from safetykit.adapters.errors import UsageError
from safetykit.adapters.statistics.moments import Moments, shrinkage
from safetykit.adapters.statistics.subspaces import principal_cosines, safety_subspace

D, K = 48, 3


def moments(states):
    """As a stream: in small batches, the second half in a stream of its own."""
    first, second = Moments(states.shape[1]), Moments(states.shape[1])
    half = len(states) // 2
    for chunk in states[:half].split(5 if half < 1000 else 500):
        first.update(chunk)
    for chunk in states[half:].split(9 if half < 1000 else 900):
        second.update(chunk)
    first.merge(second)
    return first


def planted(n, seed=0, strength=6.0, spread=2.0):
    """Benign and malicious states of uneven spread; the malicious ones vary more in a K-dimensional subspace."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64))[0]
    scales = torch.logspace(0, -spread, D, dtype=torch.float64)
    root = axes @ torch.diag(scales.sqrt()) @ axes.T

    def draw():
        return 100 + torch.randn(n, D, generator=generator, dtype=torch.float64) @ root

    truth = torch.linalg.qr(torch.randn(D, K, generator=generator, dtype=torch.float64))[0]
    extra = torch.randn(n, K, generator=generator, dtype=torch.float64) * strength
    return draw(), draw() + extra @ truth.T, truth


def worst_angle(basis, truth):
    return torch.tensor(principal_cosines(basis, truth)).clamp(max=1).min().acos().rad2deg()


@pytest.mark.parametrize("n", [24, 40, 400])
@pytest.mark.parametrize("rule", ["ledoit-wolf", "oas"])
def test_corrected_recovers_the_planted_subspace_also_with_fewer_records_than_dimensions(n, rule):
    benign, malicious, truth = planted(n, strength=30.0, spread=0.0)
    found = safety_subspace(moments(benign), moments(malicious), K, rule=rule)
    assert worst_angle(found.basis, truth) < 5
    assert found.eigenvalues[K - 1] > 20 * found.eigenvalues[K]


def test_official_finds_the_null_space_of_the_benign_states_when_they_are_few():
    """30 benign states in 48 dimensions leave 19 directions without variance; those win, whatever is malicious."""
    benign, malicious, truth = planted(30, strength=30.0, spread=0.0)
    official = safety_subspace(moments(benign), moments(malicious), K, variant="official")
    corrected = safety_subspace(moments(benign), moments(malicious), K)
    assert official.eigenvalues[0] > 1e8 > 1e5 > corrected.eigenvalues[0]
    inside = official.basis.T @ moments(benign).covariance() @ official.basis
    assert inside.diagonal().max() < 1e-9, "no benign variance along any of its directions"
    assert worst_angle(official.basis, truth) > 20 > 5 > worst_angle(corrected.basis, truth)


def test_official_finds_the_planted_subspace_when_benign_states_are_many():
    benign, malicious, truth = planted(20_000, strength=30.0, spread=0.0)
    found = safety_subspace(moments(benign), moments(malicious), K, variant="official")
    assert worst_angle(found.basis, truth) < 4


def test_the_gain_of_official_is_no_projections():
    """Columns of length 1 that are not orthogonal: at the published α the state is blown up, not projected."""
    benign, malicious, _ = planted(60)
    official = safety_subspace(moments(benign), moments(malicious), 16, variant="official")
    corrected = safety_subspace(moments(benign), moments(malicious), 16)
    assert torch.allclose(official.basis.norm(dim=0), torch.ones(16, dtype=torch.float64))
    lowest, _ = official.gain(4.5)
    eigenvalues = torch.linalg.eigvalsh(torch.eye(D) - 4.5 * official.basis @ official.basis.T)
    assert lowest == pytest.approx(float(eigenvalues.min())) and lowest < -5
    assert corrected.gain(4.5) == pytest.approx((-3.5, -3.5))
    assert corrected.gain(1.0) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_corrected_is_orthonormal_and_nested():
    benign, malicious, _ = planted(60)
    found = [safety_subspace(moments(benign), moments(malicious), k).basis for k in (2, 5)]
    assert torch.allclose(found[1].T @ found[1], torch.eye(5, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(found[0], found[1][:, :2], atol=1e-8)


@pytest.mark.parametrize("variant", ["official", "corrected"])
def test_eigenvectors_satisfy_the_pencil_and_come_by_falling_eigenvalue(variant):
    benign, malicious = (moments(states) for states in planted(300)[:2])
    found = safety_subspace(benign, malicious, 1, variant=variant)
    sigma_b = benign.covariance()
    eye = torch.eye(D, dtype=torch.float64)
    if variant == "official":
        sigma_b = sigma_b + 1e-6 * eye
    else:
        sigma_b = (1 - found.shrinkage) * sigma_b + found.shrinkage * sigma_b.trace() / D * eye
    first = found.basis[:, 0]
    assert torch.allclose(malicious.covariance() @ first, found.eigenvalues[0] * sigma_b @ first, rtol=1e-5)
    assert (found.eigenvalues.diff() <= 0).all()


@pytest.mark.parametrize("variant", ["official", "corrected"])
def test_the_order_of_records_does_not_turn_a_sign(variant):
    benign, malicious, _ = planted(200)
    forwards = safety_subspace(moments(benign), moments(malicious), 4, variant=variant)
    backwards = safety_subspace(moments(benign.flip(0)), moments(malicious.flip(0)), 4, variant=variant)
    assert torch.allclose(forwards.basis, backwards.basis, atol=1e-6)


def test_about_the_benign_mean_the_shift_itself_is_found():
    benign, _, truth = planted(300)
    shifted = planted(300, seed=1)[0] + 8 * truth[:, 0]
    about_benign = safety_subspace(moments(benign), moments(shifted), 1, centre="benign")
    about_own = safety_subspace(moments(benign), moments(shifted), 1)
    expected = torch.linalg.solve(moments(benign).covariance(), truth[:, 0])
    cosine = torch.nn.functional.cosine_similarity(about_benign.basis[:, 0], expected, dim=0)
    assert abs(cosine) > 0.9
    assert about_benign.eigenvalues[0] > 5 * about_own.eigenvalues[0]


def test_directions_at_or_below_the_floor_are_left_out_but_the_first():
    benign, malicious, _ = planted(400, spread=0.3)
    both = moments(benign), moments(malicious)
    assert safety_subspace(*both, 20, floor=5.0).basis.shape == (D, K)
    assert safety_subspace(*both, 20, floor=1e9).basis.shape == (D, 1)


@pytest.mark.parametrize("n", [10, 47, 500])
def test_shrinkage_from_the_stream_is_that_of_the_whole(n):
    states = planted(n)[0]
    assert shrinkage(moments(states), "ledoit-wolf") == pytest.approx(ledoit_wolf_shrinkage(states.numpy()), rel=1e-6)
    assert shrinkage(moments(states), "oas") == pytest.approx(sklearn_oas(states.numpy())[1], rel=1e-6)


def test_higher_moments_of_merged_streams_are_those_of_the_whole():
    states = planted(200)[0]
    streamed, centred = moments(states), states - states.mean(0)
    squares = centred.square().sum(1)
    assert streamed.count == 200
    assert torch.allclose(streamed.covariance(), states.T.cov(correction=0), rtol=1e-8)
    assert streamed.quartic == pytest.approx(float(squares @ squares), rel=1e-9)
    assert torch.allclose(streamed.cubic, squares @ centred, atol=1e-6 * squares.sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 49}, "k = 49 directions were asked for; states have 48 dimensions. Choose k from 1 to 48"),
        ({"rank": 0}, "k = 0 directions"),
        ({"malicious": 1}, "covariance of malicious states needs at least 2 records, and there are 1"),
        ({"benign": 0}, "covariance of benign states needs at least 2 records, and there are 0"),
    ],
)
def test_what_cannot_be_solved_is_said(change, message):
    benign, malicious, _ = planted(50)
    with pytest.raises(UsageError, match=message):
        safety_subspace(
            moments(benign[: change.get("benign", 50)]),
            moments(malicious[: change.get("malicious", 50)]),
            change.get("rank", 2),
        )


def test_benign_states_without_any_spread_are_refused():
    benign, malicious, _ = planted(50)
    with pytest.raises(UsageError, match="benign states are all the same"):
        safety_subspace(moments(benign[:1].repeat(10, 1)), moments(malicious), 2)
