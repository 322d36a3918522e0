"""Refusal tokens and the margin."""

import math

import pytest
import torch

from safetykit.adapters import UsageError
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.evaluation.refusal import RefusalTokens, refusal_margin
from safetykit.toolkit.model.requests import Generation


class Scripted:
    """Answers by prompt: what a model that refuses in a known way would say."""

    def __init__(self, answers):
        self.answers = answers

    def generate(self, requests, max_new_tokens=32):
        return [self.answers[request.prompt] for request in requests]


def record(prompt, label="harmful"):
    return Record(id=prompt, prompt=prompt, label=label, split="fit")


SORRY, CANNOT = Generation("Sorry, no.", (5, 6, 7)), Generation("I cannot help.", (9, 6))


def test_the_first_tokens_of_refusals_are_found_and_the_commonest_first():
    answered = {"d": Generation("Press it.", (3,)), "fine": Generation("It is.", (2,))}
    prompts = {"a": SORRY, "b": SORRY, "c": CANNOT, **answered}
    records = [record(prompt) for prompt in "abcd"] + [record("fine", "harmless")]
    found = RefusalTokens.find(Scripted(prompts), records)
    assert found == RefusalTokens(token_ids=(5, 9), text="Sorry, no.", first=5, refused=0.75)


def test_an_opening_that_answers_share_tells_nothing():
    """Refusals open with "I" here as often as answers do; only "Sorry" remains."""
    prompts = {"a": SORRY, "b": CANNOT, "c": Generation("I like it.", (9,)), "d": Generation("I do.", (9,))}
    records = [record("a"), record("b"), record("c", "harmless"), record("d", "harmless")]
    assert RefusalTokens.find(Scripted(prompts), records).token_ids == (5,)
    del prompts["a"]
    with pytest.raises(UsageError, match="open with the same tokens"):
        RefusalTokens.find(Scripted(prompts), records[1:])


def test_a_model_that_never_refuses_cannot_teach_how_it_does():
    with pytest.raises(UsageError, match="refuses none of 1 harmful text records"):
        RefusalTokens.find(Scripted({"a": Generation("Press it.", (3,))}), [record("a")])
    with pytest.raises(UsageError, match="no harmful text record"):
        RefusalTokens.find(Scripted({}), [record("a", "harmless")])


def test_refusing_harmless_records_only_is_no_refusal_of_harm():
    prompts = {"a": Generation("Press it.", (3,)), "b": SORRY}
    with pytest.raises(UsageError, match="refuses none"):
        RefusalTokens.find(Scripted(prompts), [record("a"), record("b", "harmless")])


def test_the_margin_is_the_log_odds_of_a_refusal():
    logits = torch.randn(4, 11, generator=torch.Generator().manual_seed(0))
    share = logits.softmax(-1)[:, [2, 5]].sum(-1)
    assert torch.allclose(refusal_margin(logits, (2, 5)), torch.log(share / (1 - share)), atol=1e-6)
    assert torch.allclose(refusal_margin(logits + 40, (2, 5)), refusal_margin(logits, (2, 5)), atol=1e-4)
    tokens = RefusalTokens((2, 5), "", 2)
    assert torch.equal(tokens.margin(logits), refusal_margin(logits, (2, 5)))
    assert torch.allclose(tokens.log_probability(logits), share.log(), atol=1e-6)


def test_the_margin_stays_finite_and_moves_where_a_probability_has_saturated():
    sure, surer = torch.zeros(1, 3), torch.zeros(1, 3)
    sure[0, 0], surer[0, 0] = 200.0, 210.0
    first, second = refusal_margin(sure, (0,)).item(), refusal_margin(surer, (0,)).item()
    assert second - first == pytest.approx(10.0, abs=1e-3)
    assert math.isfinite(refusal_margin(-sure, (0,)).item())
