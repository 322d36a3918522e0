"""Rows that join and leave while others decode get the tokens that they get alone."""

import numpy as np
import pytest
import torch

from safetykit.adapters import Adapter, Intervention, Site
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base

STEPS = 6


def held(make_adapter):
    """A corrector whose gate decides at the prompt and holds."""
    info = make_adapter().info
    width, random = info.base.d_model, torch.Generator().manual_seed(7)
    tensors = {
        "weight": torch.randn(3 * width, generator=random) * 0.3,
        "bias": torch.tensor(0.1),
        "threshold": torch.tensor(0.0),
        "direction": torch.randn(width, generator=random),
        "alpha": torch.tensor(1.5),
    }
    site, *reads = map(Site.block, (2, 0, 1))
    return Adapter(info, (Intervention("ProbedPush", site, "last", "both", tensors, "once", tuple(reads)),))


@pytest.fixture(scope="module", params=["open", "held"])
def model(request, vlm, base_folder, make_adapter, make_probe, tmp_path_factory):
    """With a corrector and a detector."""
    folder = tmp_path_factory.mktemp(request.param)
    base = read_manifest(base_folder)
    copy_base(base_folder, folder, base)
    steering = make_adapter(("SupervisedSteering", "decoder.layers.0", "all", "both"))
    corrector = held(make_adapter) if request.param == "held" else steering
    manifest = adapt(folder, base, [corrector, make_probe(threshold=100)])
    assert bool(manifest.gate_state) == (request.param == "held")
    return OnnxVLM(folder, manifest, vlm.inputs, ["CPUExecutionProvider"])


def greedy(state):
    return state.logits[:, -1].argmax(-1)


def alone(model, request):
    state, found = model.prefill_requests([request]), []
    for _ in range(STEPS):
        found.append(state.logits[0, -1])
        state = model.step(state, greedy(state))
    return found


def test_rows_come_and_go(model, requests):
    expected = [alone(model, one) for one in requests]
    found = [[] for _ in requests]
    state, rows = None, []
    arriving = {0: [0], 1: [1, 2], 3: [3]}
    for turn in range(10):
        if turn in arriving:
            read = model.prefill_requests([requests[at] for at in arriving[turn]])
            for at, logits in zip(arriving[turn], read.logits[:, -1], strict=True):
                found[at].append(logits)
            tokens = np.concatenate([*([] if state is None else [greedy(state)]), greedy(read)])
            there = [] if state is None else [(state, range(len(rows)))]
            state = model.join([*there, (read, range(len(arriving[turn])))])
            rows += arriving[turn]
        else:
            tokens = greedy(state)
        state = model.step(state, tokens)
        for at, logits in zip(rows, state.logits[:, -1], strict=True):
            found[at].append(logits)
        if leaving := [place for place, at in enumerate(rows) if len(found[at]) == STEPS]:
            staying = [place for place in range(len(rows)) if place not in leaving]
            rows = [rows[place] for place in staying]
            if not rows:
                break
            state = model.join([(state, staying)])
            assert state.attention_mask.any(axis=0)[0], "no column is padding alone"
    assert not rows
    for one, other in zip(expected, found, strict=True):
        assert [int(logits.argmax()) for logits in one] == [int(logits.argmax()) for logits in other]
        assert max(np.abs(a - b).max() for a, b in zip(one, other, strict=True)) < 1e-4


def test_leaving_and_joining_at_once_is_as_one_after_the_other(model, requests):
    there, read = model.prefill_requests(requests[:3]), model.prefill_requests(requests[3:])
    there = model.step(there, greedy(there))
    staying, new = [0, 2], range(len(read.attention_mask))
    once = model.join([(there, staying), (read, new)])
    kept = model.join([(there, staying)])
    twice = model.join([(kept, range(2)), (read, new)])
    assert model.join([(kept, range(2))]) is kept, "nothing is copied where nobody leaves"
    for name, value in twice.past.items():
        np.testing.assert_array_equal(once.past[name], value)
    np.testing.assert_array_equal(once.attention_mask, twice.attention_mask)
    np.testing.assert_array_equal(once.best, twice.best)
    assert once.further.keys() == twice.further.keys() and once.scores.keys() == twice.scores.keys()
    for part in ("further", "scores"):
        for name, value in getattr(twice, part).items():
            np.testing.assert_array_equal(getattr(once, part)[name], value)


def test_a_row_that_nobody_hears_stands_still_and_changes_no_other(model, requests):
    expected = [alone(model, one) for one in requests[:3]]
    state = model.prefill_requests(requests[:3])
    seen = state.attention_mask.sum(axis=1)
    live = np.array([True, False, True])
    found = {0: [state.logits[0, -1]], 2: [state.logits[2, -1]]}
    for _ in range(STEPS - 1):
        state = model.step(state, np.where(live, greedy(state), model.inputs.pad_token_id), live=live)
        for at, logits in found.items():
            logits.append(state.logits[at, -1])
    assert list(state.attention_mask.sum(axis=1) - seen) == [STEPS - 1, 0, STEPS - 1], "its place does not move on"
    for at, logits in found.items():
        assert max(np.abs(a - b).max() for a, b in zip(expected[at], logits, strict=True)) < 1e-4
    state = model.join([(state, [2])])
    assert int(greedy(model.step(state, greedy(state)))[0]) == int(greedy_after(model, requests[2]))


def greedy_after(model, request):
    """The token after so many steps, alone."""
    state = model.prefill_requests([request])
    for _ in range(STEPS):
        state = model.step(state, greedy(state))
    return greedy(state)[0]
