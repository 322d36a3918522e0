"""A model that PyTorch itself cannot reproduce in float32 is told apart from an export that is wrong."""

import copy

import pytest
import torch

from safetykit.adapters.errors import ParityFailed
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.compare import parity_requests
from safetykit.export.parity.rounding import own_rounding
from safetykit.export.parity.tolerances import TOLERANCES
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.model.vlm import VLM

LIMIT = TOLERANCES["fp32"].logits
SAYS = "PyTorch's own float32 logits of this model are .* away from float64"


@pytest.fixture(scope="module")
def saturated(vlm):
    """A copy of the model whose attention all but chooses one position alone."""
    model = copy.deepcopy(vlm.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.weight" in name or "k_proj.weight" in name:
                parameter *= 15
    return VLM(model, vlm.inputs, path=vlm.path)


def test_the_rounding_of_a_usual_model_is_far_below_what_passes(vlm, requests):
    gap = own_rounding(vlm, requests)
    assert 0 < gap.error < (LIMIT.absolute + LIMIT.relative * gap.scale) / 3


def test_saturated_attention_multiplies_it(saturated):
    gap = own_rounding(saturated, [request for batch in parity_requests().values() for request in batch])
    assert not LIMIT.passes(gap.error, gap.scale)


def test_a_failed_parity_says_whose_rounding_it_is(vlm, saturated, base_folder):
    base = OnnxVLM.from_pretrained(base_folder)
    for model, said in ((saturated, True), (vlm, False)):
        report = check_parity(model, base, [], base=base, steps=1)
        assert bool(report.warnings) is said
        if said:
            with pytest.raises(ParityFailed, match=SAYS):
                report.require()


def test_a_large_model_is_not_copied(vlm, requests, monkeypatch):
    monkeypatch.setattr("safetykit.export.parity.rounding.LARGEST", 10)
    assert own_rounding(vlm, requests) is None
