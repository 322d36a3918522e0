"""A prompt fed in chunks is what it is whole, is judged by its end, or is refused: never judged by its first chunk."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forking import MIXED, forked_exports
from transformers import DynamicCache

from safetykit.adapters.errors import UsageError
from safetykit.export.layouts.describe import interface_of
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.chunks import Prompts, spans, why_whole
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.families import families
from safetykit.toolkit.model.requests import Request

PROMPT = Request("is this dangerous , and if so what should one do about it ?")
CHUNKS = (6, 5)  # and what is left


@pytest.fixture
def export(vlm, base_folder, tmp_path):
    return forked_exports(vlm, base_folder, tmp_path)


@pytest.mark.parametrize(
    ("length", "most", "expected"),
    [
        (5, 9, [(0, 5)]),
        (10, 5, [(0, 5), (5, 10)]),
        (11, 5, [(0, 5), (5, 9), (9, 11)]),  # no single token is left over
        (4, 3, [(0, 2), (2, 4)]),
        (7, 3, [(0, 3), (3, 5), (5, 7)]),
        (1, 3, [(0, 1)]),
    ],
)
def test_no_chunk_but_the_first_is_a_single_token(length, most, expected):
    assert list(spans(length, most)) == expected


def held(adapter):
    items = tuple(dataclasses.replace(item, gate="held") for item in adapter.interventions)
    return dataclasses.replace(adapter, interventions=items)


def fed(onnx_vlm, monkeypatch):
    """How many tokens each call of the decoder brings."""
    found, run = [], onnx_vlm._decoder.run

    def noted(names, feeds):
        found.append(feeds["inputs_embeds"].shape[1])
        return run(names, feeds)

    monkeypatch.setattr(onnx_vlm._decoder, "run", noted)
    return found


def test_chunks_are_what_the_whole_prompt_is(export, make_adapter, make_probe, monkeypatch):
    """Ops of the prompt, of the answer and of both, a gate that acts in the answer, and a detector."""
    plain = make_adapter(
        ("SubspaceProjection", "decoder.layers.0", "text", "prefill"),
        ("SubspaceProjection", "decoder.layers.1", "vision", "both"),
        ("SubspaceProjection", "decoder.layers.2", "all", "decode"),
        ("SubspaceProjection", "projector", "all", "prefill"),
    )
    gated = held(make_adapter(("TargetSteering", "decoder.layers.1", "all", "decode"), seed=1))
    onnx_vlm = export(plain, gated, make_probe())
    assert onnx_vlm.manifest.whole_prompt is None
    whole = onnx_vlm.prefill_requests(MIXED, all_logits=True)
    answers = onnx_vlm.generate(MIXED, 6)
    onnx_vlm.chunk_prompts(4)
    assert onnx_vlm._tokens_first, "which takes two calls of its own to find out"
    calls = fed(onnx_vlm, monkeypatch)
    chunked = onnx_vlm.prefill_requests(MIXED, all_logits=True)
    assert max(calls) == 4 and len(calls) > 8 and 1 not in calls
    real = whole.attention_mask.astype(bool)
    assert (chunked.attention_mask == whole.attention_mask).all()
    assert np.abs(chunked.logits - whole.logits)[real].max() < 1e-4
    assert set(chunked.extras) == set(whole.extras) and "risk" in whole.extras
    for name, value in whole.extras.items():
        assert np.abs(chunked.extras[name] - value).max() < 1e-4
    for token in (5, 9):
        whole, chunked = (onnx_vlm.step(state, np.full(len(MIXED), token)) for state in (whole, chunked))
        assert np.abs(chunked.logits - whole.logits).max() < 1e-4
    assert [one.token_ids for one in onnx_vlm.generate(MIXED, 6)] == [one.token_ids for one in answers]


@pytest.mark.parametrize(
    ("items", "why"),
    [
        (("GatedSteering", "decoder.layers.1", "all", "prefill"), "the last position of a prompt decides"),
        (("SubspaceProjection", "decoder.layers.1", "last", "both"), "changes the last position of a prompt"),
        (None, "branch runs the blocks after decoder.layers.0 again over a whole prompt"),
    ],
)
def test_what_depends_on_the_whole_prompt_is_refused_in_chunks(export, make_adapter, make_detector, items, why):
    onnx_vlm = export(make_detector() if items is None else make_adapter(items))
    assert why in read_manifest(onnx_vlm.path).whole_prompt
    said = interface_of(onnx_vlm.path, onnx_vlm.manifest, onnx_vlm.inputs).whole_prompt
    assert said == onnx_vlm.manifest.whole_prompt
    with pytest.raises(UsageError, match=f"read in one call: .*{why}"):
        onnx_vlm.chunk_prompts(8)
    onnx_vlm.chunk_prompts(None)


def test_chunks_are_refused_by_what_the_family_and_the_graph_are(base_folder):
    manifest = read_manifest(base_folder)
    assert why_whole(manifest, families()["llava"]) is None
    assert "see later ones in this family (Gemma 3)" in why_whole(manifest, families()["gemma3"])
    foreign = SimpleNamespace(foreign=SimpleNamespace(continues=False))
    assert "one token at a time" in why_whole(foreign, families()["llava"])
    with pytest.raises(UsageError, match="Chunks of 2 tokens are too small"):
        OnnxVLM.from_pretrained(base_folder, opened=False).chunk_prompts(2)


def in_chunks(onnx_vlm, request):
    """The graph's states after each chunk of a prompt, as a runtime has them that knows nothing of safetykit."""
    inputs = onnx_vlm.inputs.prepare([request])
    whole = Prompts(
        onnx_vlm._embedded(inputs.input_ids),
        inputs.attention_mask,
        inputs.vision_mask,
        onnx_vlm.inputs.family.prefill(onnx_vlm.inputs.config, inputs),
    )
    past = {name: onnx_vlm._nothing(name, 1) for name in onnx_vlm._past_names}
    states, start = [], 0
    for stop in (CHUNKS[0], sum(CHUNKS), inputs.input_ids.shape[1]):
        one = whole.chunk(start, stop, onnx_vlm._axes)
        states.append(onnx_vlm._run(one.embeds, one.mask, dict(one.further), past, one.vision_mask, {}))
        past, start = states[-1].past, stop
    return states


def torch_in_chunks(vlm, hooks, request):
    """Risk and scores that PyTorch's hooks have after each chunk."""
    ids, cache, found, start = torch.from_numpy(vlm.inputs.prepare([request]).input_ids), DynamicCache(), [], 0
    with torch.inference_mode():
        for stop in (CHUNKS[0], sum(CHUNKS), ids.shape[1]):
            vlm.model(input_ids=ids[:, start:stop], past_key_values=cache, use_cache=True)
            found.append({name: value.numpy().copy() for name, value in hooks.extras.items()})
            start = stop
    return found


@pytest.mark.parametrize("kind", ["probe", "gate"])
def test_the_last_chunk_decides_as_the_whole_prompt_does(vlm, export, make_adapter, make_probe, kind):
    """Also of a gate whose steering of earlier chunks is another: what it reads lies before what it changes."""
    gate = make_adapter(("GatedSteering", "decoder.layers.1", "all", "prefill"))
    adapter, name = (make_probe(), "risk") if kind == "probe" else (gate, "0.score")
    onnx_vlm = export(adapter)
    whole = onnx_vlm.prefill_requests([PROMPT]).extras[name]
    states = [state.extras[name] for state in in_chunks(onnx_vlm, PROMPT)]
    with vlm.applied(adapter) as hooks:
        ours = [one[name] for one in torch_in_chunks(vlm, hooks, PROMPT)]
    assert np.abs(np.array(states) - np.array(ours)).max() < 1e-4
    assert np.abs(states[-1] - whole).max() < 1e-4
    assert np.abs(states[0] - whole).max() > 1e-2, "the first chunk would decide otherwise"


def test_a_branch_refuses_what_it_cannot_judge(vlm, export, make_detector):
    """Its risk of a later chunk is infinite, also in the graph that enforces it, and of the answer no number."""
    adapter = make_detector(threshold=1e9)
    onnx_vlm = export(adapter, enforce=True)
    states = in_chunks(onnx_vlm, PROMPT)
    risks = [state.extras["risk"] for state in states]
    assert np.isfinite(risks[0]).all() and np.isposinf(risks[1]).all() and np.isposinf(risks[2]).all()
    assert [int(state.best[0]) == adapter.detector.refusal_token for state in states] == [False, True, True]
    assert np.isnan(onnx_vlm.step(states[-1], np.array([9])).scores["risk"]).all()
    with vlm.applied(adapter) as hooks:
        ours = [one["risk"] for one in torch_in_chunks(vlm, hooks, PROMPT)]
    assert np.abs(ours[0] - risks[0]).max() < 1e-4 and np.isposinf(ours[1:]).all()


@pytest.mark.parametrize(
    "change", [lambda mask: mask[:, ::-1].copy(), lambda mask: mask * (np.arange(mask.shape[1]) != 12)]
)
def test_padding_on_the_right_is_refused(vlm, base_folder, change):
    """The last position would be padding, which everything that decides reads."""
    inputs = vlm.inputs.prepare([PROMPT, Request("describe it .")])
    wrong = dataclasses.replace(inputs, attention_mask=change(inputs.attention_mask))
    with pytest.raises(UsageError, match="padding inside or on its right"):
        OnnxVLM.from_pretrained(base_folder).prefill(wrong)
