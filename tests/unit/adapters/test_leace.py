"""LEACE is a theorem: after it no linear probe tells the concept, nothing smaller would do, and the mean stays."""

import numpy as np
import pytest
import torch
from planted import PlantedExample, PlantedModel, planted_records
from sklearn.linear_model import LogisticRegression

from safetykit.adapters import Adapter, Site, UsageError
from safetykit.adapters.leace.leace import erasure, require_records
from safetykit.adapters.leace.settings import LEACE
from safetykit.adapters.leace.statistics import collect, used
from safetykit.adapters.leace.sweep import coarse, refined


class Shown(PlantedModel):
    """States with a picture lie elsewhere, along a direction that is not that of harm."""

    def state(self, record, layer):
        gap = torch.roll(self.directions[layer], 3)
        return super().state(record, layer) + (5 * gap if record.carrier != "text" else 0)


@pytest.fixture(scope="module")
def shown():
    return Shown()


@pytest.fixture(scope="module")
def records():
    calm = [PlantedExample(f"calm-{at}", "harmless", carrier=("text", "image")[at % 2]) for at in range(200)]
    return [*calm, *(PlantedExample(f"bad-{at}", "harmful", carrier=("text", "image")[at % 3 > 0]) for at in range(60))]


def rows(model, records, layer=1):
    return torch.stack([model.state(one, layer) for one in records])


def accuracy(states, side):
    return LogisticRegression(max_iter=1000, C=1e4).fit(states.numpy(), side).score(states.numpy(), side)


def applied(adapter, states, at=0):
    item = adapter.interventions[at]
    return item.make_op()(states[:, None], torch.ones(len(states), 1, 1), **item.tensors)[0][:, 0]


@pytest.mark.parametrize("variant", ["least-squares", "orthogonal"])
def test_no_linear_probe_tells_pictures_after_it_and_harm_is_still_told(shown, records, variant):
    adapter = LEACE(layers=(1,), variant=variant).fit(shown, records)
    calm = used(records, "modality")
    assert {one.label for one in calm} == {"harmless"}
    before, side = rows(shown, calm), np.array([one.carrier == "image" for one in calm])
    after = applied(adapter, before)
    assert accuracy(before, side) > 0.95
    gap = after[side].mean(0) - after[~side].mean(0)  # the theorem: equal means are what no linear probe gets around
    assert (
        gap.norm() < (1e-4 if variant == "orthogonal" else 0.05) * (before[side].mean(0) - before[~side].mean(0)).norm()
    )
    assert torch.allclose(after.mean(0), before.mean(0), atol=1e-4)
    both, harm = rows(shown, records), np.array([one.label == "harmful" for one in records])
    assert accuracy(applied(adapter, both), harm) > 0.95


def test_it_is_the_closed_form_of_the_paper_and_moves_least(shown, records):
    calm = used(records, "modality")
    statistics = collect(shown, calm, [Site.block(1)], "modality", "least-squares")
    statistics[Site.block(1)].shrinkage = False
    left, right, mean = erasure(statistics, Site.block(1))
    x = rows(shown, calm).double()
    z = torch.tensor([[one.carrier == "image"] for one in calm], dtype=torch.float64)
    centred = x - x.mean(0)
    sigma, cross = centred.T @ centred / (len(x) - 1), centred.T @ (z - z.mean(0)) / (len(x) - 1)
    wanted = cross @ (cross.T @ torch.linalg.inv(sigma)) / (cross.T @ torch.linalg.inv(sigma) @ cross)
    assert torch.allclose(left @ right.T, wanted, atol=1e-8)
    assert torch.allclose(mean, x.mean(0)) and torch.allclose(right.T @ left, torch.eye(1).double())
    orthogonal = collect(shown, calm, [Site.block(1)], "modality", "orthogonal")
    flat, flat_right, _ = erasure(orthogonal, Site.block(1))

    def cost(up, down):
        return ((x - mean) @ down @ up.T).square().sum()

    assert cost(left, right) < cost(flat, flat_right)


def test_what_is_left_is_what_the_op_says_and_twice_is_once(shown, records):
    adapter = LEACE(layers=(2,)).fit(shown, records)
    (item,) = adapter.interventions
    assert (item.site, item.scope, item.phase) == (Site.block(2), "all", "prefill")
    states = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1)) + shown.offset
    scope = torch.ones(3, 5, 1)
    op = item.make_op()
    (out,) = op(states, scope, **item.tensors)
    assert op.invariant(states, out, scope, **item.tensors) < 1e-5
    assert op.invariant(states, states, scope, **item.tensors) > 1e-3
    assert torch.allclose(op(out, scope, **item.tensors)[0], out, atol=1e-4)
    assert torch.allclose(op.affine(**item.tensors)(states), out, atol=1e-4)
    assert torch.equal(op(states, 0 * scope, **item.tensors)[0], states)
    half = {**item.tensors, "beta": torch.tensor(0.5)}
    assert torch.allclose(op(states, scope, **half)[0], (states + out) / 2, atol=1e-4)
    assert op.invariant(states, (states + out) / 2, scope, **half) < 1e-5


def test_harm_is_erased_as_a_control_and_kept_with_the_adapter(shown, tmp_path):
    records = planted_records(40)
    adapter = LEACE(concept="harm", layers=(0, 3), scope="last", phase="prefill").fit(shown, records)
    adapter = Adapter.load(adapter.save(tmp_path / "a"))
    assert [str(item.site) for item in adapter.interventions] == ["decoder.layers.0", "decoder.layers.3"]
    assert adapter.info.hyperparameters["concept"] == "harm" and "concept-erasure" in adapter.info.versions
    fit = [one for one in records if one.split == "fit"]
    harm = np.array([one.label == "harmful" for one in fit])
    after = applied(adapter, rows(shown, fit, 3), 1)
    assert (after[harm].mean(0) - after[~harm].mean(0)).norm() < 0.1


def test_records_and_layers_that_teach_nothing_are_refused(shown, records):
    text = [one for one in records if one.carrier == "text"]
    with pytest.raises(UsageError, match="harmless records with and without a picture, and the fit split lacks one"):
        require_records(LEACE(), text, 32)
    with pytest.raises(UsageError, match="harmful and harmless records"):
        require_records(LEACE(concept="harm"), [one for one in text if one.label == "harmful"], 32)
    with pytest.raises(UsageError, match="decoder has 4 layers"):
        LEACE(layers=(4,)).fit(shown, records)

    class Flat(Shown):
        def state(self, record, layer):
            return torch.ones(32)

    with pytest.raises(UsageError, match="do not tell the two sides of the concept apart"):
        LEACE(layers=(1,)).fit(Flat(), records)


def test_a_sweep_tries_every_layer_and_phase_and_keeps_what_was_given():
    tried = coarse(8, 128, {})
    assert {one.layers for one in tried} == {*((at,) for at in range(8)), (2, 3, 4, 5)}
    assert {one.phase for one in coarse(8, 128, {"layers": (3,)})} == {"prefill", "both"}
    assert all(one.concept == "harm" for one in coarse(8, 128, {"concept": "harm"}))
    assert {one.beta for one in refined(LEACE(), 128, {})} == {0.5, 0.75, 1.0, 1.25, 1.5}
