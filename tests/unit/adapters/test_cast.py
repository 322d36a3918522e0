"""CAST reads the planted condition, chooses it by F1, and pushes what meets it and nothing else."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from planted import PlantedExample, PlantedModel, planted_records
from sklearn.metrics import f1_score

from safetykit.adapters import Adapter, Site, UsageError
from safetykit.adapters.cast import cast
from safetykit.adapters.cast.ops import similarity
from safetykit.adapters.cast.settings import CAST
from safetykit.adapters.cast.statistics import best_f1
from safetykit.adapters.cast.sweep import coarse, refined


@pytest.fixture(scope="module")
def planted():
    return PlantedModel(strength=8.0)


@pytest.fixture(scope="module")
def some():
    more = [PlantedExample(f"late{at}", ("harmful", "harmless")[at % 2], split="calibration") for at in range(40)]
    return [*planted_records(60), *more]


@pytest.mark.parametrize("condition", ["pca", "mean"])
def test_what_is_harmful_is_pushed_along_the_planted_direction_and_nothing_else(planted, some, condition):
    adapter = CAST(condition=condition, layers=(2,), condition_layer=1, alpha=0.5).fit(planted, some)
    (item,) = adapter.interventions
    assert (item.site, item.reads, item.gate, item.phase) == (Site.block(2), (Site.block(1),), "held", "both")
    fit = [one for one in some if one.split == "fit"]
    harmful = torch.tensor([one.label == "harmful" for one in fit])
    first, second = (torch.stack([planted.state(one, layer) for one in fit]) for layer in (1, 2))
    scope = torch.ones(len(fit), 1, 1)
    op = item.make_op()
    out, score = op(second[:, None], scope, earlier=first, **item.tensors)
    moved = (out[:, 0] - second).norm(dim=1)
    assert ((score > 0) == harmful).float().mean() > 0.95
    assert torch.equal(moved > 0, score > 0)
    step = 0.5 * planted.strength * planted.directions[2]
    assert torch.allclose((out[:, 0] - second)[score > 0], step.expand(int((score > 0).sum()), 32), atol=0.2)
    assert op.invariant(second[:, None], out, scope, earlier=first, **item.tensors) < 1e-6
    assert op.invariant(second[:, None], 2 * out - second[:, None], scope, earlier=first, **item.tensors) > 0.01
    assert (op.magnitude(second[:, None], earlier=first, **item.tensors) == 1).all()
    forced = {**item.tensors, "threshold": torch.tensor(op.forced_open()["threshold"])}
    assert (op(second[:, None], scope, earlier=first, **forced)[1] > 0).all()
    assert adapter.attachments["calibration"][0]["recall"] > 0.9


def test_the_condition_may_be_read_where_the_push_is(planted, some, tmp_path):
    adapter = CAST(layers=(1,), condition_layer=1).fit(planted, some)
    adapter = Adapter.load(adapter.save(tmp_path / "a"))
    (item,) = adapter.interventions
    assert item.reads == () and item.tensors["weight"].shape == (32,)
    several = CAST(layers=(2, 3)).fit(planted, some)
    assert several.info.hyperparameters["condition_layer"] in (0, 1)
    assert [item.tensors["weight"].shape for item in several.interventions] == [(64,), (64,)]
    assert set(several.attachments["cast"]["f1"]) == {"0", "1"}


def test_similarity_is_the_papers():
    state, c = torch.randn(4, 8), torch.randn(8)
    for row, found in zip(state, similarity(state, c), strict=True):
        projected = torch.tanh(torch.outer(c, c) / torch.dot(c, c) @ row)
        assert found == pytest.approx(torch.nn.functional.cosine_similarity(row, projected, dim=0).item(), abs=1e-5)
    assert similarity(torch.zeros(1, 8), c).tolist() == [0.0]


def test_the_condition_is_the_best_of_all_thresholds_and_both_senses():
    random = np.random.default_rng(0)
    for flip in (1, -1):
        harmful = random.random(60) < 0.4
        scores = np.round(random.normal(size=60) + flip * harmful, 1)  # with ties
        found = best_f1(scores, harmful)
        cuts = sorted(set(scores))
        tried = [
            f1_score(harmful, sense * scores > (sense * (low + high) / 2))
            for sense in (1, -1)
            for low, high in pairwise(cuts)
        ]
        assert found.f1 == pytest.approx(max(tried)) and found.sense == flip
        assert f1_score(harmful, found.sense * scores > found.threshold) == pytest.approx(found.f1)


def test_what_cannot_act_is_refused(planted, some):
    for match, left in (
        ("fit split holds no harmful text", [one for one in some if one.label == "harmless"]),
        (
            "calibration split holds no harmful",
            [one for one in some if (one.split, one.label) != ("calibration", "harmful")],
        ),
    ):
        with pytest.raises(UsageError, match=match):
            cast.require_records(CAST(), left, 32)
    with pytest.raises(UsageError, match="before anything is pushed, and layer 1 is the first"):
        CAST(layers=(1,), condition_layer=2)
    with pytest.raises(UsageError, match="before anything is pushed, and layer 0 is the first"):
        CAST(layers=(0, 1))
    with pytest.raises(UsageError, match="and layer 2 is the first"):
        CAST(condition_layer=3).fit(planted, some)
    with pytest.raises(UsageError, match="decoder has 4 layers"):
        CAST(layers=(4,)).fit(planted, some)

    class Same(PlantedModel):
        def state(self, record, layer):
            return super().state(some[0] if record.split == "calibration" else record, layer)

    with pytest.raises(UsageError, match="never opens|is always open"):
        CAST(layers=(2,)).fit(Same(), some)
    assert CAST(layers=(2,), allow_constant_gate=True).fit(Same(), some)


def test_a_sweep_tries_conditions_layers_and_strengths_and_keeps_what_was_given():
    assert {(one.condition, one.layers) for one in coarse(8, 128, {})} == {
        (condition, (layer,)) for condition in ("pca", "mean") for layer in range(1, 7)
    }
    assert {one.alpha for one in coarse(8, 128, {"layers": (3,)})} == {0.5, 1.0, 2.0}
    assert len(coarse(1, 8, {})) == 6
    assert {one.alpha for one in refined(CAST(), 128, {})} == {0.75, 1.25, 1.5}
