"""NullSteer moves planted harm by λr and leaves planted harmless states where they are; what cannot act is refused."""

import hashlib
from dataclasses import dataclass

import pytest
import torch

from safetykit.adapters import Site, UsageError
from safetykit.adapters.artifact.manifest import BaseInfo
from safetykit.adapters.nullsteer import nullsteer
from safetykit.adapters.nullsteer.settings import NullSteer
from safetykit.adapters.nullsteer.statistics import collect, require_labels, targets
from safetykit.adapters.statistics.tokens import TokenBatch, whole

WIDTH, DEPTH, BENIGN, LAYER = 24, 4, 5, 2
KINDS = {"arms": 0, "fraud": 1}


@dataclass(frozen=True)
class Example:
    id: str
    label: str
    carrier: str = "text"
    category: str = "arms"
    split: str = "fit"
    pair: str | None = None
    response: str | None = None

    def digest(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


class PlantedNull:
    """Harmless states lie in a space of 5 dimensions; harm of each category is a step along its own axis outside it.

    Harmful last states hold a part of a further axis, along which harmless tokens that are not the last ones vary.
    """

    base = BaseInfo(fingerprint="0" * 64, architecture="Planted", n_layers=DEPTH, d_model=WIDTH)

    def __init__(self) -> None:
        axes = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(5)))[0]
        self.benign, self.harm, self.inner = axes[:, :BENIGN], axes[:, BENIGN : BENIGN + 2], axes[:, BENIGN + 2]

    def state(self, record, site):
        seed = int(record.digest()[:8], 16) + 7 * site.layer
        generator = torch.Generator().manual_seed(seed)
        state = self.benign @ (2 + torch.randn(BENIGN, generator=generator))
        state = state + 1e-4 * torch.randn(WIDTH, generator=generator)
        return state + (4 * self.harm[:, KINDS[record.category]] + self.inner if record.label == "harmful" else 0)

    def states(self, units, sites, pool="last"):
        for start in range(0, len(units), 16):
            batch = [record for unit in units[start : start + 16] for record in unit]
            yield batch, {site: torch.stack([self.state(record, site) for record in batch]) for site in sites}

    def token_states(self, records, sites, keep=whole, *, with_response=False):
        assert with_response
        sizes = torch.tensor([-6.0, 6.0, 0.0])
        for batch, states in self.states([(record,) for record in records], sites):
            tokens = {site: found[:, None] + sizes[:, None] * self.inner for site, found in states.items()}
            mask = torch.ones(len(batch), len(sizes), dtype=torch.bool)
            yield keep(TokenBatch(batch, tokens, ~mask, mask))


@pytest.fixture(scope="module")
def model():
    return PlantedNull()


@pytest.fixture(scope="module")
def records():
    return [
        Example(f"{label}-{carrier}-{category}-{at}", label, carrier, category)
        for label in ("harmful", "harmless")
        for carrier in ("text", "image")
        for category in KINDS
        for at in range(40)
    ]


def refused(records, share=1.0):
    texts = [record for record in records if record.label == "harmful" and record.carrier == "text"]
    return {record.id: "refused" if at < share * len(texts) else "answered" for at, record in enumerate(texts)}


def fit(model, records, **given):
    held = {"dropped": BENIGN, "constraint": "projection", "harmless": "last"}
    settings = NullSteer(**{"layers": (LAYER,), "ridge": 1e-6, **({} if "constraint" in given else held), **given})
    return settings.fit(model, records, outcomes=refused(records))


def moved(adapter, model, label, category="arms", phase="prefill"):
    """How new records are moved."""
    (item,) = (item for item in adapter.interventions if item.phase in (phase, "both"))
    states = torch.stack([model.state(Example(f"new{at}", label, "image", category), item.site) for at in range(64)])[
        :, None
    ]
    return (item.make_op()(states, torch.ones(64, 1, 1), **item.tensors)[0] - states)[:, 0]


HELD = [
    {"constraint": "projection", "dropped": BENIGN, "harmless": "last"},
    {"constraint": "projection", "dropped": BENIGN + 1, "harmless": "tokens"},
    {"constraint": "penalty", "penalty": 100.0, "harmless": "last"},
    {"constraint": "penalty", "penalty": 100.0, "harmless": "tokens"},
]


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("harmful", ["text", "both"])
@pytest.mark.parametrize(("strength", "decode"), [(1.0, 2.0), (0.5, 0.5)])
def test_harm_is_moved_by_the_strength_times_the_refusal_and_the_rest_is_left_alone(
    model, records, harmful, strength, decode, held
):
    adapter = fit(model, records, harmful=harmful, strength=strength, decode_strength=decode, **held)
    states = {
        label: [model.state(r, Site.block(LAYER)) for r in records if (r.label, r.carrier) == (label, "text")]
        for label in ("harmful", "harmless")
    }
    refusal = torch.stack(states["harmful"]).mean(0) - torch.stack(states["harmless"]).mean(0)
    for phase, wanted in (("prefill", strength), ("decode", decode)):
        # One w serves both categories, which are two axes: what it reads off a state lies near 1.
        assert torch.allclose(
            moved(adapter, model, "harmful", phase=phase), wanted * refusal, atol=0.15 * refusal.norm()
        )
        assert moved(adapter, model, "harmless", phase=phase).norm(dim=1).max() < 1e-2 * refusal.norm()
    assert len(adapter.interventions) == (1 if strength == decode else 2)


@pytest.mark.parametrize("held", HELD)
def test_tokens_inside_an_answer_are_left_alone_where_they_were_looked_at(model, records, held):
    (item, _) = fit(model, records, **held).interventions
    reading = (item.tensors["down"][:, 0] @ model.inner).abs()
    assert reading < 0.01 if held["harmless"] == "tokens" else reading > 0.03


def test_each_category_gets_its_own_refusal_where_the_rank_holds_them(model, records):
    """The mean direction moves arms and fraud alike; of rank 2 each is moved along its own axis."""
    both = fit(model, records, variant="low-rank", rank=2)
    one = fit(model, records)
    for category, axis in KINDS.items():
        towards = model.harm[:, axis]
        assert (
            moved(both, model, "harmful", category) @ towards
            > 0.9 * moved(both, model, "harmful", category).norm(dim=1)
        ).all()
        assert (
            moved(one, model, "harmful", category) @ towards < 0.9 * moved(one, model, "harmful", category).norm(dim=1)
        ).all()
    assert both.interventions[0].tensors["up"].shape == (WIDTH, 2)


def test_of_one_category_and_rank_the_two_forms_are_one(model, records):
    some = [record for record in records if record.category == "arms"]
    one, low = fit(model, some), fit(model, some, variant="low-rank", rank=1)
    hidden = torch.randn(8, 3, WIDTH, generator=torch.Generator().manual_seed(2))
    out = [
        a.interventions[0].make_op()(hidden, torch.ones(8, 3, 1), **a.interventions[0].tensors)[0] for a in (one, low)
    ]
    assert torch.allclose(*out, atol=1e-4)


def test_the_projector_is_one_and_drops_what_it_says(model, records):
    used = require_labels(records, "both")
    statistics = collect(model, used, [Site.block(LAYER)], targets(used, "refused", refused(records)))
    second = statistics.harmless[Site.block(LAYER)].second_moment()
    for given in ((0, None), (BENIGN, None), (3, None), (0, 0.5), (0, 0.9999999)):
        space = nullsteer.null_space(second, *given)
        p = space.projector
        assert torch.equal(p, p.T) and torch.allclose(p @ p, p, atol=1e-12)
        assert round(float(p.trace())) == WIDTH - space.dropped
        assert space.kept == pytest.approx(float((p @ second @ p).trace() / second.trace()), abs=1e-9)
    assert nullsteer.null_space(second, 0, 0.9999999).dropped == BENIGN
    assert nullsteer.null_space(second, BENIGN).kept < 1e-7
    assert nullsteer.null_space(second, 0, 0.5).kept <= 0.5


def test_the_map_lies_in_the_null_space_and_scales_with_the_strength(model, records):
    adapter = fit(model, records, strength=1.0, decode_strength=3.0)
    prefill, decode = adapter.interventions
    assert (prefill.phase, decode.phase) == ("prefill", "decode")
    assert (prefill.tensors["down"][:, 0] @ model.benign).abs().max() < 1e-4 * prefill.tensors["down"].norm()
    hidden = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    ones, op = torch.ones(2, 3, 1), prefill.make_op()
    moves = [op(hidden, ones, **item.tensors)[0] - hidden for item in (prefill, decode)]
    assert torch.allclose(3 * moves[0], moves[1], atol=1e-5)
    assert torch.linalg.matrix_rank(moves[0].reshape(-1, WIDTH), rtol=1e-5) == 1


def test_the_op_is_affine_and_its_invariant_sees_a_wrong_strength_and_a_swap(model, records):
    (item,) = fit(model, records, decode_strength=1.0).interventions
    op, hidden = item.make_op(), torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1))
    scope = torch.ones(2, 3, 1)
    (out,) = op(hidden, scope, **item.tensors)
    assert torch.allclose(op.affine(**item.tensors)(hidden), out, atol=1e-5)
    assert op.invariant(hidden, out, scope, **item.tensors) < 1e-6
    swapped = {**item.tensors, "up": item.tensors["down"], "down": item.tensors["up"]}
    for wrong in (
        op(hidden, scope, **{**item.tensors, "strength": torch.tensor(0.9)})[0],
        op(hidden, scope, **swapped)[0],
    ):
        assert op.invariant(hidden, wrong, scope, **item.tensors) > 1e-3
    closed = torch.zeros(2, 3, 1)
    assert torch.equal(op(hidden, closed, **item.tensors)[0], hidden)


def test_the_refusal_is_of_what_the_model_refused(model, records):
    half = NullSteer(layers=(LAYER,)).fit(model, records, outcomes=refused(records, 0.5))
    every = NullSteer(layers=(LAYER,), towards="harmful").fit(model, records)
    axes = [item.interventions[0].tensors["up"][:, 0] @ model.harm for item in (half, every)]
    assert axes[0][1].abs() < 0.2 < axes[0][0] and axes[1].min() > 1  # the first half of the texts are of one category
    with pytest.raises(UsageError, match="Pass outcomes.*--towards harmful|Pass outcomes"):
        NullSteer().fit(model, records)
    with pytest.raises(UsageError, match="refuses no harmful text record"):
        NullSteer().fit(model, records, outcomes={})


def test_the_card_says_how_far_states_are_moved(model, records):
    adapter = fit(model, records)
    (entry,) = adapter.attachments["nullsteer"]["layers"].values()
    assert entry["harmful"] == pytest.approx(1, abs=0.05) and entry["harmless"] < 1e-3
    assert (entry["dropped"], entry["rank"], entry["site"]) == (BENIGN, 1, f"decoder.layers.{LAYER}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"dropped": 3, "variance": 0.5, "constraint": "projection"},
            "dropped and variance both say what is left alone",
        ),
        ({"strength": 0}, "strength of 0 in both phases"),
        ({"strength": 0.0, "decode_strength": 0.0}, "strength of 0 in both phases"),
        ({"dropped": 3}, "dropped does nothing with constraint penalty"),
        ({"penalty": 3, "constraint": "projection"}, "penalty does nothing with constraint projection"),
        ({"penalty": 0}, "penalty cannot be 0. It is above 0"),
        ({"variance": 1, "constraint": "projection"}, "variance cannot be 1. It is below 1"),
        ({"ridge": 0}, "ridge cannot be 0. It is above 0"),
        ({"rank": 2}, "rank does nothing with variant rank-one"),
        ({"harmful": "texts"}, "Did you mean 'text'"),
        ({"towards": "refuse"}, "Did you mean 'refused'"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        NullSteer(**given)


@pytest.mark.parametrize(
    ("given", "keep", "message"),
    [
        (
            {"dropped": WIDTH, "constraint": "projection"},
            lambda r: True,
            "dropped cannot be 24: states have 24 dimensions",
        ),
        ({"dropped": -1, "constraint": "projection"}, lambda r: True, "dropped cannot be -1"),
        (
            {"variant": "low-rank", "rank": 3, "harmful": "both"},
            lambda r: True,
            "rank cannot be 3.*are of 2 categories",
        ),
        (
            {"variant": "low-rank", "rank": 2, "harmful": "text"},
            lambda r: r.carrier == "image" or r.category == "arms",
            "rank cannot be 2.*are of 1 category",
        ),
        ({}, lambda r: r.label == "harmless", "holds no harmful text record"),
        ({}, lambda r: r.label == "harmful", "holds no harmless text record"),
        ({"harmful": "both"}, lambda r: r.carrier == "text", "no harmful record with a picture.*harmful text"),
    ],
)
def test_records_that_teach_nothing_are_refused_before_a_model_is_loaded(records, given, keep, message):
    with pytest.raises(UsageError, match=message):
        nullsteer.require_records(NullSteer(**given), [record for record in records if keep(record)], WIDTH)


def test_layers_and_strengths_that_are_not_given():
    assert [site.layer for site in nullsteer.sites_of(NullSteer(), 8)] == [4]
    assert [site.layer for site in nullsteer.sites_of(NullSteer(), 1)] == [0]
    assert NullSteer(strength=1.5).strengths == (1.5, 3.0) and NullSteer(site="mlp").strengths == (1.0, 1.0)
    with pytest.raises(UsageError, match="decoder has 4 layers"):
        nullsteer.sites_of(NullSteer(layers=(4,)), 4)
