"""Babble: answers the unmodified model would not give cost a sweep as much as refusals do."""

import math
from dataclasses import replace

import pytest
import torch

from safetykit.adapters import Adapter, Intervention, Site
from safetykit.adapters.artifact.manifest import AdapterInfo, DataInfo
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.toolkit.data.journal import Journal
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.evaluation.fluency import surprise
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.sweep import trials as sweep


@pytest.fixture(scope="module")
def vlm():
    return VLM.from_pretrained(model_path("reference:mild"))


@pytest.fixture(scope="module")
def records():
    """Calibration records that do not say what a right answer is."""
    found = subset(load_records(data_path("reference"), ["calibration"]), 24)
    return [record.model_copy(update={"response": None}) for record in found]


def removing(vlm, rank):
    """An adapter that removes ``rank`` random directions from every position after the first block."""
    width = vlm.base.d_model
    basis, _ = torch.linalg.qr(torch.randn(width, rank, generator=torch.Generator().manual_seed(0)))
    tensors = {"basis": basis.contiguous(), "mean": torch.zeros(width), "beta": torch.tensor(1.0)}
    info = AdapterInfo(
        method="test",
        variant="test",
        sign_convention="none",
        hyperparameters={},
        seed=None,
        base=vlm.base,
        data=DataInfo(sha256="0" * 64, counts={}),
        versions={},
    )
    return Adapter(info, (Intervention("SubspaceProjection", Site.block(0), "all", "both", tensors),))


def test_surprise_is_the_cross_entropy_of_the_answer_alone_whatever_the_padding(vlm, records):
    requests = [Request(record.prompt, record.picture()) for record in records[:6]]
    answers = [item.text for item in vlm.generate(requests, 8)]
    found = surprise(vlm, requests, answers)
    for request, answer, value in zip(requests, answers, found, strict=True):
        logits, inputs = vlm.prefill([replace(request, answer=answer)])
        count = inputs.input_ids.shape[1] - vlm.prepare([request]).input_ids.shape[1]
        targets = torch.from_numpy(inputs.input_ids[0, -count:])
        wanted = torch.nn.functional.cross_entropy(logits[0, -count - 1 : -1], targets)
        assert value == pytest.approx(wanted.item(), abs=1e-4)


def test_an_answer_without_a_token_is_infinitely_odd(vlm, records):
    assert surprise(vlm, [Request(records[0].prompt)], [""]) == [math.inf]


def test_words_in_another_order_are_odder(vlm, records):
    requests = [Request(record.prompt) for record in records if not record.image][:4]
    answers = [item.text for item in vlm.generate(requests, 8)]
    turned = [" ".join(reversed(answer.split())) for answer in answers]
    for own, other in zip(surprise(vlm, requests, answers), surprise(vlm, requests, turned), strict=True):
        assert own < other


def test_babble_costs_a_sweep_though_no_record_says_what_is_right(vlm, records, tmp_path):
    """The fitter's rank says how many directions are removed; with 100 of 128 the model babbles."""

    def trials():
        return sweep.Trials(
            vlm,
            records,
            lambda guard: removing(vlm, guard.rank),
            max_new_tokens=8,
            journal=Journal(tmp_path / "sweep.jsonl", {"work": "babble"}),
        )

    first = trials()
    first.attempt([VLMGuard(rank=100), VLMGuard(rank=1)])
    figures = {trial.setting.rank: trial.figures for trial in first.ranked()}
    assert first.undefended.exact == 1 - first.undefended.over_refusal, "its own answers are never odd"
    assert figures[1].exact > 0.9
    assert figures[100].exact < 0.2 and figures[100].over_refusal < 0.2, "it does not refuse; it babbles"
    assert first.ranked()[0].setting.rank == 1
    again = trials()
    again.attempt([VLMGuard(rank=50)])
    assert again._oddest == first._oddest, "a resumed sweep holds answers to the same limit"
    assert again.undefended == first.undefended
