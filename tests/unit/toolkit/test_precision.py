"""Computing in float32 from weights in bfloat16."""

import pytest
import torch
from PIL import Image

from safetykit.toolkit.model.options import LoadOptions
from safetykit.toolkit.model.precision import widened
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

REQUESTS = [Request("what is this ?", Image.new("RGB", (64, 64), "red")), Request("is it dangerous ?")]


def logits(vlm):
    return vlm.prefill(REQUESTS)[0]


@pytest.fixture(scope="module")
def wide(bf16_checkpoint):
    """Logits of the same weights loaded in float32."""
    return logits(VLM.from_pretrained(bf16_checkpoint, dtype="float32"))


@pytest.fixture
def narrow(bf16_checkpoint):
    return VLM.from_pretrained(bf16_checkpoint)


@pytest.mark.parametrize("at_once", [True, False])
def test_it_is_what_the_same_weights_give_in_float32(narrow, wide, at_once, monkeypatch):
    before = logits(narrow)
    assert (before.float() - wide).abs().max() > 1e-3
    monkeypatch.setattr("safetykit.toolkit.model.precision.free_memory", lambda device: 2**40 if at_once else 0)
    with narrow.computing(torch.float32):
        assert narrow.dtype == torch.float32
        found = logits(narrow)
        assert found.dtype == torch.float32
        assert torch.allclose(found, wide, atol=1e-5 * wide.abs().max().item())
    assert narrow.dtype == torch.bfloat16 and torch.equal(logits(narrow), before)


def test_a_model_in_float32_is_left_alone(random_vlm):
    kept = [tensor.data_ptr() for tensor in random_vlm.model.parameters()]
    with random_vlm.computing(torch.float32):
        assert [tensor.data_ptr() for tensor in random_vlm.model.parameters()] == kept


def test_blocks_hold_their_wide_weights_only_while_they_run(narrow):
    layers = narrow.parts.layers
    seen = []
    watch = layers[1].register_forward_hook(
        lambda *_: seen.append([next(one.parameters()).dtype for one in (layers[0], layers[1], layers[2])])
    )
    with widened(narrow.model, torch.float32, at_once=False):
        narrow.model(**{name: narrow.arguments(narrow.prepare(REQUESTS[1:]))[name] for name in ("input_ids",)})
    watch.remove()
    assert seen == [[torch.bfloat16, torch.float32, torch.bfloat16]]


def test_a_pass_that_ends_early_leaves_the_weights_as_they_were(narrow):
    def stop(*_):
        raise InterruptedError

    with widened(narrow.model, torch.float32, at_once=False):
        handle = narrow.parts.layers[1].mlp.register_forward_hook(stop)
        with pytest.raises(InterruptedError):
            logits(narrow)
        handle.remove()
        assert narrow.parts.layers[1].mlp.gate_proj.weight.dtype == torch.bfloat16


def test_weights_that_are_loaded_meanwhile_are_widened_too(bf16_checkpoint, wide):
    vlm = VLM.without_weights(bf16_checkpoint, LoadOptions())
    with vlm.computing(torch.float32):
        vlm.load()
        assert torch.allclose(logits(vlm), wide, atol=1e-5 * wide.abs().max().item())
    assert vlm.model.dtype == torch.bfloat16
