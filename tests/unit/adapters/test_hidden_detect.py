"""HiddenDetect's cosine is that of the logits, without computing them; its threshold keeps the rate it was given."""

import pytest
import torch
from planted_source import DEPTH, REFUSAL, VOCABULARY, WIDTH, PlantedSource, examples

from safetykit.adapters import Site, UsageError
from safetykit.adapters.hidden_detect.detect import require_records, tensors_of
from safetykit.adapters.hidden_detect.ops import RefusalCosine
from safetykit.adapters.hidden_detect.settings import HiddenDetect


class Speaking(PlantedSource):
    """Its head turns the planted direction into the refusal's first token."""

    def __init__(self):
        super().__init__()
        self.weight[REFUSAL.token] = 30 * self.direction

    def gain(self):
        return torch.ones(WIDTH)


def test_the_cosine_is_that_of_the_logits_behind_a_norm():
    generator = torch.Generator().manual_seed(4)
    head, gain = torch.randn(VOCABULARY, WIDTH, generator=generator), torch.rand(WIDTH, generator=generator) + 0.5
    hidden = 900 * torch.randn(6, 3, WIDTH, generator=generator)
    norm = torch.nn.RMSNorm(WIDTH, eps=0)
    norm.weight.data = gain
    logits = norm(hidden)[:, -1] @ head.T
    wanted = torch.nn.functional.cosine_similarity(logits, torch.eye(VOCABULARY)[REFUSAL.token][None])
    tensors = tensors_of(head, gain, REFUSAL.token)
    for scale in (1, 1e18, 1e-12):  # squares overflow, or vanish
        assert torch.allclose(RefusalCosine()(scale * hidden, **tensors), wanted, atol=1e-5)
    assert torch.equal(RefusalCosine()(0 * hidden, **tensors), torch.zeros(6))


def test_planted_harm_is_found_without_a_fit_and_the_threshold_keeps_its_rate():
    source, records = Speaking(), examples(80)
    adapter = HiddenDetect(false_positive_rate=0.05).fit(source, records, REFUSAL)
    (item,) = adapter.interventions
    assert (item.op, item.site) == ("RefusalCosine", Site.block(DEPTH - 1))
    assert adapter.info.data.counts.keys() == {
        f"calibration/{carrier}/{label}" for carrier in ("text", "image") for label in ("harmful", "harmless")
    }
    fresh = [one for one in examples(160) if one.split == "fit"]
    states = torch.stack([source.state(one, item.site) for one in fresh])[:, None]
    above = item.make_op()(states, **item.tensors) > adapter.detector.threshold
    harmful = torch.tensor([one.label == "harmful" for one in fresh])
    assert above[harmful].float().mean() > 0.3 and above[~harmful].float().mean() < 0.12
    (row,) = adapter.attachments["calibration"]
    assert row["false_positive_rate"] <= 0.05 and row["auroc"] > 0.85


def test_what_cannot_be_is_refused():
    calm = [one for one in examples(4) if one.label == "harmless"]
    for records, label in (
        (calm, "harmful"),
        ([], "harmful"),
        ([one for one in examples(4) if one not in calm], "harmless"),
    ):
        with pytest.raises(UsageError, match=f"calibration split holds no {label} record"):
            require_records(HiddenDetect(), records, WIDTH)
    with pytest.raises(UsageError, match="decoder has 4 layers"):
        HiddenDetect(layer=DEPTH).fit(Speaking(), examples(4), REFUSAL)
    with pytest.raises(UsageError, match="false_positive_rate cannot be 1. It is below 1"):
        HiddenDetect(false_positive_rate=1)
