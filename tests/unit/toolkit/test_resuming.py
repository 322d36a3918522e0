"""Passes that begin at a layer give what whole passes give."""

import pytest
import torch
from planted_vlm import SMALL

from safetykit.adapters.artifact.sites import Site
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.diagnosis.pairs import PairBatch, find_pairs
from safetykit.toolkit.diagnosis.patching import margins, swapped
from safetykit.toolkit.diagnosis.resuming import Resumed
from safetykit.toolkit.evaluation.refusal import RefusalTokens
from safetykit.toolkit.model.vlm import VLM

REFUSAL = RefusalTokens((416,), "sorry", 416, 1.0)


@pytest.fixture(scope="module")
def vlm(planted_folder):
    return VLM.from_pretrained(planted_folder)


@pytest.fixture(scope="module")
def batch(vlm, planted_data):
    pairs = [pair for pair in find_pairs(load_records(planted_data)) if pair.modality == "visual"]
    return PairBatch.prepare(vlm, pairs[: SMALL["batch_size"]])


def attended(vlm):
    """Which layers compute, in order."""
    calls = []
    handles = [
        layer.self_attn.register_forward_hook(lambda *_, at=at: calls.append(at))
        for at, layer in enumerate(vlm.parts.layers)
    ]
    return calls, lambda: [handle.remove() for handle in handles]


def test_a_patched_pass_from_its_layer_on_is_the_whole_pass_to_the_bit(vlm, batch):
    passes, depth = Resumed(vlm, batch, REFUSAL), len(vlm.parts.layers)
    forwards = [layer.forward for layer in vlm.parts.layers]
    assert torch.equal(passes.plain, margins(vlm, batch, REFUSAL))
    calls, done = attended(vlm)
    for layer in range(depth):
        for kind in ("attn", "mlp", "block"):
            with swapped(vlm, batch, Site(kind, layer), "all"):
                del calls[:]
                begun = passes.margins(layer)
                steps = list(calls)
                assert torch.equal(begun, margins(vlm, batch, REFUSAL)), (kind, layer)
            assert steps[-(depth - layer) :] == list(range(layer, depth))
            assert len(steps) - (depth - layer) == (kind == "attn" and layer > 0)  # on to the layer before, once
    done()
    assert [layer.forward for layer in vlm.parts.layers] == forwards


def test_a_model_whose_layers_share_more_than_the_stream_runs_whole_passes(vlm, batch, monkeypatch):
    first, last = vlm.parts.layers[0], vlm.parts.layers[-1]
    seen, kept, made = {}, first.forward, last.forward

    def leave(*args, **kwargs):
        seen["here"] = torch.as_tensor(1.0)
        return kept(*args, **kwargs)

    monkeypatch.setattr(first, "forward", leave)
    monkeypatch.setattr(last, "forward", lambda *args, **kwargs: made(args[0] * seen.pop("here"), *args[1:], **kwargs))
    passes = Resumed(vlm, batch, REFUSAL)
    with swapped(vlm, batch, Site("mlp", 2), "all"):
        assert torch.equal(passes.margins(2), margins(vlm, batch, REFUSAL))


def test_what_goes_wrong_on_the_way_leaves_the_model_as_it_was(vlm, batch, monkeypatch):
    passes, forwards = Resumed(vlm, batch, REFUSAL), [layer.forward for layer in vlm.parts.layers]

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = vlm.parts.layers[3].mlp.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        passes.margins(2)
    handle.remove()
    assert [layer.forward for layer in vlm.parts.layers] == forwards
    assert torch.equal(passes.margins(2), passes.plain)
