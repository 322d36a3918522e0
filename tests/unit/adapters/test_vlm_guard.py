"""VLM-Guard finds what was planted, and says so when it cannot."""

from dataclasses import replace

import pytest
import torch
from planted import PlantedExample, planted_records

from safetykit.adapters import Site, UsageError, VLMGuard
from safetykit.adapters.statistics.moments import Moments, top_directions


def interventions(adapter):
    return {item.site.layer: item.tensors for item in adapter.interventions}


@pytest.mark.parametrize("direction", ["svd", "mean"])
@pytest.mark.parametrize(("paired", "count"), [(True, 60), (False, 1500)])
def test_the_planted_direction_is_recovered_with_its_sign(planted, paired, count, direction):
    """Pairs cancel what the two prompts share, so they need far fewer records."""
    adapter = VLMGuard(layers=(0, 1, 2, 3), direction=direction).fit(planted, planted_records(count, paired))
    for layer, tensors in interventions(adapter).items():
        assert tensors["basis"][:, 0] @ planted.directions[layer] > 0.99


def test_the_direction_points_towards_harm_whatever_the_order_of_records(planted, records):
    forwards = VLMGuard(layers=(1,)).fit(planted, records)
    backwards = VLMGuard(layers=(1,)).fit(planted, records[::-1])
    assert torch.allclose(
        forwards.interventions[0].tensors["basis"], backwards.interventions[0].tensors["basis"], atol=1e-5
    )


@pytest.mark.parametrize("direction", ["svd", "mean"])
def test_the_basis_is_orthonormal(planted, records, direction):
    tensors = interventions(VLMGuard(layers=(2,), rank=4, direction=direction).fit(planted, records))[2]
    assert tensors["basis"].shape == (32, 4)
    assert torch.allclose(tensors["basis"].T @ tensors["basis"], torch.eye(4), atol=1e-5)


@pytest.mark.parametrize("gate", ["calibrated", "whitened"])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_the_gate_opens_on_the_chosen_share_of_calibration_records(planted, records, rate, gate):
    pictured = [PlantedExample(f"seen{index}", "harmless", carrier="image") for index in range(40)]
    adapter = VLMGuard(layers=(1,), gate=gate, false_positive_rate=rate).fit(planted, [*records, *pictured])
    tensors = interventions(adapter)[1]
    benign = [record for record in records if record.split == "calibration"]
    states = torch.stack([planted.state(record, 1) for record in benign])
    opened = ((states - tensors["mean"]) @ tensors["gate"] > tensors["threshold"] + 1e-4).float().mean()
    assert opened == pytest.approx(rate, abs=1 / len(benign))


def test_the_papers_gate_is_the_sign_of_the_uncentred_product(planted, records):
    adapter = VLMGuard(variant="steer", gate="paper", layers=(1,)).fit(planted, records)
    item = adapter.interventions[0]
    hidden = torch.randn(64, 1, 32, generator=torch.Generator().manual_seed(1)) * 5
    _, score = item.make_op()(hidden, torch.ones(64, 1, 1), **item.tensors)
    assert torch.equal(score > 0, hidden[:, -1] @ item.tensors["basis"][:, 0] > 0)


@pytest.mark.parametrize("variant", ["orthogonal", "steer", "supervised", "target"])
def test_every_variant_fits_one_intervention_per_layer(planted, records, variant):
    adapter = VLMGuard(variant=variant, layers=(1, 3)).fit(planted, records)
    assert [item.site for item in adapter.interventions] == [Site.block(1), Site.block(3)]
    assert adapter.info.variant == variant
    assert adapter.info.data.counts == {
        "calibration/image/harmless": 60,
        "fit/text/harmful": 60,
        "fit/text/harmless": 60,
    }


def test_harmless_prompts_without_a_counterpart_count_in_the_mean_and_not_in_the_svd(planted, records):
    """Look-alikes lie off the harmless mean; only ``mean`` may turn away from them."""
    alone = [PlantedExample(f"alone{index}", "harmless") for index in range(200)]
    state, off = planted.state, torch.nn.functional.one_hot(torch.tensor(3), 32) * 6.0
    planted.state = lambda record, layer: state(record, layer) + (off if record.id.startswith("alone") else 0)

    def first(direction, data):
        return interventions(VLMGuard(layers=(1,), direction=direction).fit(planted, data))[1]["basis"][:, 0]

    assert torch.allclose(first("svd", records), first("svd", [*records, *alone]), atol=1e-5)
    assert first("mean", [*records, *alone])[3] < first("mean", records)[3] - 0.1


def test_visual_carriers_do_not_reach_the_direction(planted, records):
    extra = [replace(record, id=f"x{record.id}", carrier="typographic", pair=None) for record in records]
    plain = VLMGuard(layers=(1,), variant="orthogonal").fit(planted, records)
    more = VLMGuard(layers=(1,), variant="orthogonal").fit(planted, [*records, *extra])
    assert torch.equal(plain.interventions[0].tensors["basis"], more.interventions[0].tensors["basis"])


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (lambda r: r.split == "fit" and r.label == "harmful", "fit split holds no harmful text record"),
        (lambda r: r.split == "fit" and r.label == "harmless", "fit split holds no harmless text record"),
        (lambda r: r.split == "calibration", "calibration split holds no harmless record"),
    ],
)
def test_an_empty_split_or_label_is_named(planted, records, drop, message):
    with pytest.raises(UsageError, match=message):
        VLMGuard(layers=(1,)).fit(planted, [record for record in records if not drop(record)])


def test_a_missing_layer_and_a_senseless_rank_are_refused(planted, records):
    with pytest.raises(UsageError, match="decoder has 4 layers"):
        VLMGuard(layers=(4,)).fit(planted, records)
    with pytest.raises(UsageError, match="rank cannot be 0"):
        VLMGuard(rank=0)
    with pytest.raises(UsageError, match=r"Rank 31 was asked for, but the fit records span only 12 directions"):
        VLMGuard(layers=(1,), rank=31, direction="svd").fit(planted, planted_records(12))


def test_the_whitened_gate_sees_no_modality_gap_and_still_sees_harm(planted):
    """Pictures shift every state by a gap that half cancels the harm direction: one threshold must serve both."""
    n, d = 300, planted.base.d_model
    across = torch.nn.functional.normalize(torch.randn(d, generator=torch.Generator().manual_seed(9)), dim=0)
    gap = 8 * torch.nn.functional.normalize(across - planted.directions[1], dim=0)
    state = planted.state
    planted.state = lambda record, layer: state(record, layer) + (gap if record.carrier == "image" else 0)
    data = planted_records(n)
    data += [PlantedExample(f"seen{index}", "harmless", carrier="image") for index in range(n)]
    data += [PlantedExample(f"read{index}", "harmless", split="calibration") for index in range(n)]

    def caught(gate):
        tensors = interventions(VLMGuard(layers=(1,), gate=gate, false_positive_rate=0.02).fit(planted, data))[1]
        attacks = [PlantedExample(f"attack{index}", "harmful", carrier="image") for index in range(n)]
        states = torch.stack([planted.state(record, 1) for record in attacks])
        return float(((states - tensors["mean"]) @ tensors["gate"] > tensors["threshold"]).float().mean())

    assert caught("whitened") > caught("calibrated") + 0.3


def test_the_whitened_gate_needs_harmless_pictures(planted, records):
    with pytest.raises(UsageError, match="harmless records with pictures in the fit split.*--gate calibrated"):
        VLMGuard(layers=(1,), gate="whitened").fit(planted, records)


def test_a_text_model_of_another_shape_is_refused(planted, records):
    from planted import PlantedModel

    with pytest.raises(UsageError, match="text model has 2 layers of width 32, the VLM 4 of 32"):
        VLMGuard(layers=(1,)).fit(planted, records, text_model=PlantedModel(n_layers=2))


def test_streamed_moments_equal_those_of_the_whole():
    data = torch.randn(300, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1e4
    streamed, half = Moments(8), Moments(8)
    for chunk in data[:100].split(7):
        streamed.update(chunk)
    half.update(data[100:])
    streamed.merge(half)
    assert streamed.count == 300
    assert torch.allclose(streamed.mean, data.mean(0))
    assert torch.allclose(streamed.scatter, (data - data.mean(0)).T @ (data - data.mean(0)), rtol=1e-6)
    assert torch.allclose(streamed.second_moment(), data.T @ data, rtol=1e-9)


def test_top_directions_are_the_right_singular_vectors():
    rows = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    basis, found = top_directions(rows.T @ rows, 3, vectors[0])
    assert torch.allclose(found, values, rtol=1e-8)
    assert torch.allclose((basis * vectors[:3].T).sum(0).abs(), torch.ones(3, dtype=torch.float64), atol=1e-8)
    assert basis[:, 0] @ vectors[0] > 0
