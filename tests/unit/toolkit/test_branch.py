"""A branch in PyTorch: the second run of the decoder's own blocks, and what is done with its risk."""

import dataclasses

import pytest
import torch
from PIL import Image

from safetykit.adapters import Adapter, Intervention, Site, UsageError
from safetykit.adapters.artifact.manifest import AdapterInfo, DataInfo, DetectorInfo
from safetykit.adapters.ops.branch import Branch
from safetykit.adapters.ops.forcing import FORCED_LOGIT
from safetykit.toolkit.evaluation.evaluate import Decision, tabulate
from safetykit.toolkit.model.requests import Request

SAFETY, FUSED = 2, 4
REQUESTS = [
    Request("what is this ?", Image.effect_noise((48, 48), 60).convert("RGB")),
    Request("is it dangerous ?"),
    Request("how do i use this thing ?", Image.effect_noise((48, 48), 90).convert("RGB")),
    Request("tell me"),
]


def info(vlm):
    return AdapterInfo(
        method="test",
        variant="test",
        sign_convention="",
        hyperparameters={},
        seed=None,
        base=vlm.base,
        data=DataInfo(sha256="0" * 64, counts={}),
        versions={},
    )


def detector(vlm, safety=SAFETY, fused=FUSED, threshold=0.0):
    width = vlm.base.d_model
    weight = torch.randn(width, generator=torch.Generator().manual_seed(0)) * 0.2
    tensors = {"weight": weight, "bias": torch.tensor(0.1)}
    branch = Branch("FusedProjection", Site.block(safety), Site.block(fused), tensors)
    settings = DetectorInfo(threshold=threshold, refusal="tell me", refusal_token=3)
    return Adapter(info(vlm), branch=branch, detector=settings)


def shift(vlm, layer, amount):
    width = vlm.base.d_model
    mean = torch.full((width,), float(amount))
    tensors = {"basis": torch.eye(width)[:, :1], "mean": mean, "beta": torch.tensor(1.0)}
    return Adapter(info(vlm), (Intervention("SubspaceProjection", Site.block(layer), "all", "both", tensors),))


def split(vlm, made):
    """The detector with a threshold between the requests' risks, and which of them it refuses."""
    with vlm.applied(made) as hooks:
        vlm.prefill(REQUESTS)
    risks = hooks.extras["risk"].tolist()
    threshold = sum(sorted(risks)[1:3]) / 2
    settings = made.detector.model_copy(update={"threshold": threshold})
    return dataclasses.replace(made, detector=settings), [risk > threshold for risk in risks]


def risk_by_hand(vlm, made, request):
    """Two full passes: the first gives the states, the second has block s's output replaced."""
    arguments = vlm.arguments(vlm.inputs.prepare([request]))
    with torch.no_grad():
        hidden = vlm.model(**arguments, output_hidden_states=True).hidden_states
        early, late = hidden[SAFETY + 1], hidden[FUSED + 1]
        alpha = (early * late).sum(-1, keepdim=True) / (late * late).sum(-1, keepdim=True)
        handle = vlm.parts.layers[SAFETY].register_forward_hook(lambda *_: alpha * late)
        normed = []
        other = vlm.parts.final_norm.register_forward_hook(lambda _, __, output: normed.append(output))
        vlm.model(**arguments)
        handle.remove()
        other.remove()
    return float(normed[0][0, -1] @ made.branch.tensors["weight"] + made.branch.tensors["bias"])


def test_the_branch_is_the_second_of_two_full_passes(random_vlm):
    made = detector(random_vlm)
    with random_vlm.applied(made) as hooks:
        random_vlm.prefill(REQUESTS)
    wanted = torch.tensor([risk_by_hand(random_vlm, made, request) for request in REQUESTS])
    assert hooks.extras["risk"].dtype == torch.float32
    assert torch.allclose(hooks.extras["risk"], wanted, atol=1e-5)
    assert hooks.extras["risk"].std() > 1e-3


def test_blocks_are_evaluated_as_often_as_the_formula_says(random_vlm):
    made, calls = detector(random_vlm), []
    handles = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in random_vlm.parts.layers]
    with random_vlm.applied(made):
        random_vlm.prefill(REQUESTS)
    for handle in handles:
        handle.remove()
    n_layers = random_vlm.base.n_layers
    assert len(calls) == (FUSED + 1) + (n_layers - 1 - SAFETY) + (n_layers - 1 - FUSED) == made.branch.blocks(n_layers)


def test_the_branch_leaves_the_answer_and_its_cache_alone(random_vlm):
    from transformers import DynamicCache

    plain, forked = DynamicCache(), DynamicCache()
    logits, _ = random_vlm.prefill(REQUESTS, plain)
    with random_vlm.applied(detector(random_vlm)):
        again, _ = random_vlm.prefill(REQUESTS, forked)
    assert torch.equal(logits, again)
    for one, other in zip(plain.layers, forked.layers, strict=True):
        assert torch.equal(one.keys, other.keys) and torch.equal(one.values, other.values)


def test_decoding_does_not_judge_again(random_vlm):
    made = detector(random_vlm, threshold=1e6)
    with random_vlm.applied(made) as hooks:
        random_vlm.prefill(REQUESTS)
        before = hooks.extras["risk"]
        random_vlm.generate(REQUESTS, 1)
        calls = []
        handle = random_vlm.parts.layers[-1].register_forward_hook(lambda *_: calls.append(1))
        random_vlm.generate(REQUESTS, 5)
        handle.remove()
    assert torch.allclose(hooks.extras["risk"], before, atol=1e-5)
    assert len(calls) == 2 + 4, "the last block runs twice at prefill and once at each of four steps"


def test_correctors_act_in_the_branch_and_keep_their_own_scores(random_vlm):
    width = random_vlm.base.d_model
    tensors = {
        "basis": torch.eye(width)[:, :1],
        "mean": torch.zeros(width),
        "gate": torch.ones(width),
        "threshold": torch.tensor(-1e9),
        "alpha": torch.tensor(3.0),
    }
    gated = Intervention("GatedSteering", Site.block(6), "last", "prefill", tensors)
    corrector = Adapter(info(random_vlm), (gated,))
    with random_vlm.applied(corrector) as hooks:
        random_vlm.prefill(REQUESTS)
    alone = hooks.extras["0.score"]
    with random_vlm.applied(corrector, detector(random_vlm)) as hooks:
        random_vlm.prefill(REQUESTS)
    assert torch.equal(hooks.extras["0.score"], alone), "the score of the answer's pass, not of the branch's"
    with random_vlm.applied(detector(random_vlm)) as bare:
        random_vlm.prefill(REQUESTS)
    assert (hooks.extras["risk"] - bare.extras["risk"]).abs().max() > 1e-3


@pytest.mark.parametrize("layer", [0, SAFETY, FUSED, 6])
def test_the_branch_starts_from_corrected_states(random_vlm, layer):
    """Corrected at s or f, the branch is that of a model with those states."""
    corrector, made = shift(random_vlm, layer, 5.0), detector(random_vlm)
    with random_vlm.applied(corrector, made) as hooks:
        random_vlm.prefill(REQUESTS)
    with random_vlm.applied(corrector):
        seen = []
        for at in (SAFETY, FUSED):
            hook = random_vlm.parts.layers[at].register_forward_hook(lambda _, __, output: seen.append(output))
            random_vlm.prefill(REQUESTS)
            hook.remove()
        start = made.branch.make_op().start(*seen)
        handle = random_vlm.parts.layers[SAFETY].register_forward_hook(lambda *_: start)
        normed = []
        other = random_vlm.parts.final_norm.register_forward_hook(lambda _, __, output: normed.append(output))
        random_vlm.prefill(REQUESTS)
        handle.remove()
        other.remove()
    wanted = made.branch.make_op().risk(normed[0], **made.branch.tensors)
    assert torch.allclose(hooks.extras["risk"], wanted, atol=1e-5)


def test_refused_rows_get_the_refusal_and_the_others_what_they_would_have_got(random_vlm):
    made, wanted = split(random_vlm, detector(random_vlm))
    plain = random_vlm.generate(REQUESTS, 6)
    with random_vlm.applied(made):
        answers = random_vlm.generate(REQUESTS, 6)
    assert any(wanted) and not all(wanted)
    for refused, got, free in zip(wanted, answers, plain, strict=True):
        assert got.refused == refused == (got.scores["risk"] > 0) and not free.refused
        if refused:
            assert got.text == "tell me" and random_vlm.inputs.decode(got.token_ids) == "tell me"
        else:
            assert (got.text, got.token_ids) == (free.text, free.token_ids)


def test_a_batch_that_is_refused_whole_costs_one_prefill(random_vlm):
    calls = []
    handle = random_vlm.parts.head.register_forward_hook(lambda *_: calls.append(1))
    with random_vlm.applied(detector(random_vlm, threshold=-1e6)):
        answers = random_vlm.generate(REQUESTS, 8)
    handle.remove()
    assert all(answer.refused for answer in answers) and len(calls) == 1


def test_enforced_logits_leave_a_greedy_reader_no_choice(random_vlm):
    made, wanted = split(random_vlm, detector(random_vlm))
    plain, _ = random_vlm.prefill(REQUESTS)
    with random_vlm.applied(made, enforce=True) as hooks:
        forced, _ = random_vlm.prefill(REQUESTS)
    assert hooks.forced_rows().tolist() == wanted
    assert torch.equal(forced[:, :-1], plain[:, :-1])
    for row, refused in enumerate(wanted):
        if refused:
            assert forced[row, -1].argmax() == 3 and forced[row, -1].half().isfinite().all()
            assert forced[row, -1].max() == FORCED_LOGIT
        else:
            assert torch.equal(forced[row, -1], plain[row, -1])


def test_a_probe_reports_its_risk_under_the_same_name(random_vlm):
    weight = torch.randn(random_vlm.base.d_model, generator=torch.Generator().manual_seed(1))
    tensors = {"weight": weight, "bias": torch.tensor(0.5)}
    probe = Intervention("LinearProbe", Site.block(FUSED), "last", "prefill", tensors)
    settings = DetectorInfo(threshold=0.0, refusal="tell me", refusal_token=3)
    made, wanted = split(random_vlm, Adapter(info(random_vlm), (probe,), detector=settings))
    plain, _ = random_vlm.prefill(REQUESTS)
    with random_vlm.applied(made) as hooks:
        logits, _ = random_vlm.prefill(REQUESTS)
        answers = random_vlm.generate(REQUESTS, 3)
    assert torch.equal(plain, logits) and set(hooks.extras) == {"risk"}
    assert [answer.refused for answer in answers] == wanted


def test_a_detector_is_needed_to_enforce_and_layers_must_exist(random_vlm):
    with pytest.raises(UsageError, match="no detector whose refusal"), random_vlm.applied(enforce=True):
        pass
    with pytest.raises(UsageError, match="decoder has 8 layers"), random_vlm.applied(detector(random_vlm, 2, 40)):
        pass
    assert not random_vlm.parts.head._forward_hooks


def test_a_run_that_stops_early_leaves_nothing_behind(random_vlm, tmp_path):
    """Reading states of a few layers under a detector never reaches the head; the next prefill is judged by its own."""
    with random_vlm.applied(detector(random_vlm)) as hooks:
        random_vlm.prefill(REQUESTS)
        first = hooks.extras["risk"]
        from safetykit.toolkit.data.records import Record

        one = Record(id="0", prompt="what is it ?", label="harmless", split="fit")
        list(random_vlm.states([(one,)], [Site.block(FUSED)]))
        random_vlm.prefill(REQUESTS)
        assert torch.equal(hooks.extras["risk"], first)


def decisions(*scores, labels):
    return [
        Decision(id=str(at), carrier="text", label=label, tags=(), text="", outcome="other", scores=score)
        for at, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]


def test_the_detectors_risk_counts_before_the_gates_of_correctors():
    labels = ("harmful", "harmful", "harmless", "harmless")
    risks = ({"risk": 2.0, "0.score": -9.0}, {"risk": 1.0}, {"risk": -1.0, "0.score": 9.0}, {"risk": -2.0})
    gates = ({"0.score": 1.0, "1.score": -1.0}, {"0.score": -5.0, "1.score": 2.0}, {"0.score": -1.0}, {"0.score": 0.0})
    assert tabulate(decisions(*risks, labels=labels))[0].detector_auroc == 1.0
    assert tabulate(decisions(*gates, labels=labels))[0].detector_auroc == 1.0
