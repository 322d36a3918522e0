"""Rotary embeddings whose frequencies depend on a length take each row's own, in PyTorch and in graphs."""

from __future__ import annotations

import inspect
from types import MethodType

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from safetykit.bench.zoo.llavas import llava_of
from safetykit.export.base.own import export_base
from safetykit.export.parity.compare import compare_logits
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.rotary import rows_apart
from safetykit.toolkit.model.vlm import VLM

HEAD = 8  # channels of a head: WIDTH / 4
ROPES = {
    "longrope": {
        "max_position_embeddings": 256,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 100.0,
            "short_factor": [1.0] * (HEAD // 2),
            "long_factor": [4.0] * (HEAD // 2),
            "original_max_position_embeddings": 24,
        },
    },
    "dynamic": {
        "max_position_embeddings": 24,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 8.0},
    },
}
SHORT, LONG = Request("what is this ?"), Request("how do i use a knife ? " * 6)


@pytest.fixture(scope="module", params=ROPES)
def vlm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rope") / request.param
    llava_of(LlamaConfig, folder, **ROPES[request.param])
    made = VLM.from_pretrained(folder)
    made.inputs.max_prompt_tokens = None  # `dynamic` goes on beyond the model's maximum, as answers may
    return made


def logits(vlm, requests, steps=2):
    """Of the last positions, and of further tokens."""
    cache = vlm.empty_cache()
    with torch.inference_mode():
        found, inputs = vlm.prefill(requests, cache)
        found, mask = [found[:, -1]], torch.from_numpy(inputs.attention_mask)
        for token in range(5, 5 + steps):
            mask = torch.cat([mask, torch.ones(len(requests), 1, dtype=mask.dtype)], dim=1)
            found.append(vlm.step(torch.full((len(requests), 1), token), mask, cache)[:, -1])
    return torch.stack(found).numpy()


def rotary(vlm):
    return vlm.model.model.language_model.rotary_emb


def test_a_row_is_what_it_is_alone_and_first(vlm, monkeypatch):
    lengths = vlm.inputs.prepare([SHORT, LONG]).attention_mask.sum(axis=1)
    assert lengths[0] < 20 and lengths[1] > 30, "on both sides of the length that changes frequencies"
    alone = np.concatenate([logits(vlm, [one]) for one in (SHORT, LONG)], axis=1)
    together = logits(vlm, [SHORT, LONG])
    assert np.abs(together - alone).max() <= 1e-5 * np.abs(alone).max()
    with monkeypatch.context() as patch:
        patch.setattr(rotary(vlm), "forward", MethodType(type(rotary(vlm)).forward, rotary(vlm)))
        theirs = logits(vlm, [SHORT, LONG])
        assert np.abs(theirs - alone).max() > 0.05 * np.abs(alone).max(), "transformers takes the longest row's"
        rotary(vlm).max_seq_len_cached = 24  # or `dynamic` has the frequencies of what came before
        single = logits(vlm, [LONG])
    assert np.abs(single - alone[:, 1:]).max() <= 1e-5 * np.abs(alone).max(), "of one row it is transformers' own"


def test_a_graph_has_each_row_s_frequencies_too(vlm, tmp_path):
    export_base(vlm, tmp_path / "base")
    base = OnnxVLM.from_pretrained(tmp_path / "base")
    base.inputs.max_prompt_tokens = None
    gap = compare_logits(vlm, base, [SHORT, LONG], steps=3).logits
    assert gap.error <= 1e-5 * gap.scale


def test_a_spread_model_s_hooks_call_it(vlm):
    """accelerate puts a function of its own in the place of ``forward``, which calls what it found there."""
    module = rotary(vlm)
    module._old_forward = kept = MethodType(type(module).forward, module)
    try:
        rows_apart(vlm.model)
        assert module._old_forward != kept and inspect.ismethod(module._old_forward)
    finally:
        del module._old_forward


def test_other_rotary_embeddings_stay_as_they_are(random_vlm):
    assert all("forward" not in vars(module) for module in random_vlm.model.modules())
