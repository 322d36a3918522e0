"""The refusal direction is the planted one; addition adds it everywhere, ablation leaves nothing of it anywhere."""

import pytest
import torch
from planted import planted_records

from safetykit.adapters import Adapter, Site, UsageError
from safetykit.adapters.refusal_direction import direction
from safetykit.adapters.refusal_direction.settings import RefusalDirection
from safetykit.adapters.refusal_direction.sweep import coarse, refined


@pytest.fixture
def hidden():
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))


def test_addition_pushes_every_token_by_the_planted_step(planted, records, hidden):
    (item,) = RefusalDirection(layer=1, strength=0.5).fit(planted, records).interventions
    assert (item.site, item.scope, item.phase) == (Site.block(1), "all", "both")
    scope = torch.ones(2, 5, 1)
    (out,) = item.make_op()(hidden, scope, **item.tensors)
    step = 0.5 * planted.strength * planted.directions[1]
    assert torch.allclose(out - hidden, step.expand(2, 5, 32), atol=0.1)
    op = item.make_op()
    assert op.invariant(hidden, out, scope, **item.tensors) < 1e-6
    assert op.invariant(hidden, 2 * out - hidden, scope, **item.tensors) > 0.01
    assert torch.allclose(op.affine(**item.tensors)(hidden), out, atol=1e-6)
    assert torch.equal(op(hidden, 0 * scope, **item.tensors)[0], hidden)


def test_ablation_leaves_nothing_of_it_at_any_layer(planted, records, hidden, tmp_path):
    adapter = RefusalDirection(variant="ablation", layer=2).fit(planted, records)
    adapter = Adapter.load(adapter.save(tmp_path / "a"))
    assert [item.site for item in adapter.interventions] == [Site.block(layer) for layer in range(4)]
    item = adapter.interventions[0]
    (out,) = item.make_op()(hidden, torch.ones(2, 5, 1), **item.tensors)
    assert (out @ planted.directions[2]).abs().max() < 0.1 * (hidden @ planted.directions[2]).abs().max()
    assert (out @ item.tensors["basis"]).abs().max() < 1e-5


def test_records_and_settings_that_teach_nothing_are_refused(planted, records):
    for label in ("harmful", "harmless"):
        some = [record for record in records if record.label != label or record.split != "fit"]
        with pytest.raises(UsageError, match=f"holds no {label} text record"):
            direction.require_records(RefusalDirection(), some, 32)
    with pytest.raises(UsageError, match="decoder has 4 layers"):
        RefusalDirection(layer=4).fit(planted, planted_records(4))
    with pytest.raises(UsageError, match="strength does nothing with variant ablation"):
        RefusalDirection(variant="ablation", strength=2.0)
    with pytest.raises(UsageError, match="strength cannot be 0. It is above 0"):
        RefusalDirection(strength=0)


def test_a_sweep_tries_every_layer_but_the_last_and_keeps_what_was_given():
    assert [one.layer for one in coarse(8, 128, {})] == list(range(7))
    assert [one.layer for one in coarse(8, 128, {"layer": 3})] == [3]
    assert {one.strength for one in refined(RefusalDirection(layer=3), 128, {})} == {0.25, 0.5, 0.75, 1.5}
    assert refined(RefusalDirection(variant="ablation"), 128, {}) == []


def test_a_random_direction_is_as_long_as_the_planted_one_and_repeats_by_its_seed(planted, records):
    found = {}
    for seed in (0, 0, 1):
        adapter = RefusalDirection(variant="random", layer=1, seed=seed).fit(planted, records)
        found.setdefault(seed, []).append(adapter.interventions[0].tensors["direction"])
        assert adapter.info.seed == seed
    added = RefusalDirection(layer=1).fit(planted, records).interventions[0].tensors["direction"]
    first, again, other = found[0][0], found[0][1], found[1][0]
    assert torch.equal(first, again) and first.norm() == pytest.approx(added.norm().item(), rel=1e-5)
    for one, two in ((first, other), (first, added)):
        assert torch.nn.functional.cosine_similarity(one, two, dim=0).abs() < 0.6
    with pytest.raises(UsageError, match="seed does nothing with variant addition"):
        RefusalDirection(seed=3)
