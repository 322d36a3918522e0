"""The streaming guard finds harm that shows after the prompt, keeps its budget, and pushes by what its formula says."""

import dataclasses

import pytest
import torch
from planted_answers import NAMED, REFUSAL, PlantedAnswers
from planted_source import examples

from safetykit.adapters import Adapter, Intervention, InvalidArtifact, Site, StreamingGuard, UsageError, get_op
from safetykit.adapters.ops.gating import HeldGate

COUNT = 48


@pytest.fixture(scope="module")
def model() -> PlantedAnswers:
    return PlantedAnswers()


def fitted(model, records=None, **given) -> Adapter:
    guard = StreamingGuard(**{"layers": (1, 3), "rounds": 2, **given})
    return guard.fit(model, records or examples(COUNT), lambda text: text == REFUSAL)


@pytest.fixture(scope="module")
def adapter(model) -> Adapter:
    return fitted(model)


def margins(item: Intervention, model, record) -> torch.Tensor:
    early, late = (model.states(record, site) for site in (*item.reads, item.site))
    found = [item.make_op().margin(late[at][None, None], **item.tensors, earlier=early[at][None]) for at in range(6)]
    return torch.cat(found)


def test_harm_that_only_a_token_of_the_answer_shows_is_found_there(model, adapter):
    (item,) = adapter.interventions
    assert item.site == Site.block(3) and item.reads == (Site.block(1),) and item.phase == "both"
    for part in item.tensors["weight"].reshape(2, -1):
        assert torch.nn.functional.cosine_similarity(part, model.harm, 0) > 0.7
    report = adapter.attachments["streaming"]
    assert report["recall"] > 0.97 and report["prompt_recall"] < 0.7
    assert report["opens"][0] >= 23 and report["opens"][NAMED] >= 23 and sum(report["opens"][NAMED + 1 :]) == 0


def test_a_gate_that_opened_closes_inside_the_models_own_refusal(model, adapter):
    assert adapter.attachments["streaming"]["in_refusals"] < 0.1
    (item,) = adapter.interventions
    refused = next(one for one in examples(COUNT) if model.refused(one) and one.split == "calibration")
    found = margins(item, model, refused)
    assert found[0] > 0 and (found[1:] < 0).all()


@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_no_more_harmless_calibration_answers_than_the_budget_open_the_gate_anywhere(model, rate):
    (item,) = fitted(model, false_positive_rate=rate).interventions
    harmless = [one for one in examples(COUNT) if one.split == "calibration" and one.label == "harmless"]
    opened = sum(bool((margins(item, model, one) > 0).any()) for one in harmless)
    assert opened <= rate * len(harmless)


def test_the_push_is_the_difference_of_harmful_and_harmless_text(model, adapter):
    direction = adapter.interventions[0].tensors["direction"]
    expected = 3 * model.harm + 2 * model.text
    assert torch.nn.functional.cosine_similarity(direction, expected, 0) > 0.98
    assert 0.9 < direction.norm() / expected.norm() < 1.1


def test_the_order_of_records_changes_nothing_and_the_adapter_comes_back_from_disk(model, adapter, tmp_path):
    again = fitted(model, examples(COUNT)[::-1])
    assert again.info == adapter.info and again.attachments == adapter.attachments
    loaded = Adapter.load(adapter.save(tmp_path / "guard"))
    for other in (again, loaded):
        (mine,), (theirs,) = adapter.interventions, other.interventions
        assert (mine.reads, mine.gate) == (theirs.reads, theirs.gate)
        assert all(torch.equal(mine.tensors[name], theirs.tensors[name]) for name in mine.tensors)


def test_records_of_the_test_split_have_no_say(model, adapter):
    others = [dataclasses.replace(one, id=f"test-{one.id}", split="test") for one in examples(8)]
    assert fitted(model, [*examples(COUNT), *others]).info == adapter.info


@pytest.mark.parametrize("left_out", [("fit", "harmful"), ("fit", "harmless")])
def test_text_to_take_the_push_from_is_asked_for(model, left_out):
    records = [one for one in examples(8) if (one.split, one.label, one.carrier) != (*left_out, "text")]
    with pytest.raises(UsageError, match=f"fit split holds no {left_out[1]} text record"):
        fitted(model, records)


def op_inputs(op: str):
    random = torch.Generator().manual_seed(1)
    hidden, earlier = torch.randn(20, 4, 8, generator=random), torch.randn(20, 8, generator=random)
    tensors = {
        "weight": torch.randn(16, generator=random),
        "bias": torch.tensor(0.3),
        "threshold": torch.tensor(-0.5),
        "direction": torch.randn(8, generator=random),
        "alpha": torch.tensor(1.5),
    }
    scope = torch.zeros(20, 4, 1)
    scope[:, -1] = 1
    score = torch.cat([earlier, hidden[:, -1]], 1) @ tensors["weight"] + 0.3 + 0.5
    return get_op(op), hidden, scope, earlier, tensors, score


def test_a_ramp_grows_with_the_margin_up_to_twice_the_strength():
    op, hidden, scope, earlier, tensors, score = op_inputs("RampedPush")
    after, margin = op(hidden, scope, **tensors, earlier=earlier)
    torch.testing.assert_close(margin, score)
    assert (score < 0).any() and (score > 4).any()
    moved = 0.5 * 1.5 * score.clamp(0, 4)[:, None] * tensors["direction"]
    torch.testing.assert_close(after[:, -1] - hidden[:, -1], moved)
    assert torch.equal(after[:, :-1], hidden[:, :-1])
    assert op.invariant(hidden, after, scope, **tensors, earlier=earlier) < 1e-6
    assert op.invariant(hidden, after + 0.1, scope, **tensors, earlier=earlier) > 1e-3


def test_a_gate_that_opens_once_acts_at_the_first_call_above_and_at_none_after_it():
    op, hidden, scope, earlier, tensors, _ = op_inputs("ProbedPush")
    gate = HeldGate(op, once=True)
    held, low, high = (
        torch.zeros(20),
        tensors | {"threshold": torch.tensor(1e6)},
        tensors | {"threshold": -1e6 * torch.ones(())},
    )
    acted = []
    for decides, given in ((True, low), (False, high), (False, high), (False, low), (True, high), (False, high)):
        after, held = gate(hidden, scope, decides=torch.tensor(decides), held=held, **given, earlier=earlier)
        acted.append(bool((after != hidden).any()))
    assert acted == [False, True, False, False, True, False]


def test_a_ramp_needs_every_margin_so_its_gate_cannot_be_held(adapter):
    (item,) = adapter.interventions
    with pytest.raises(InvalidArtifact, match="needs the margin of every token"):
        dataclasses.replace(item, gate="once")
