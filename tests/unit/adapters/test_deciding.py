"""A gate or detector that decides nothing is refused: at the fit, when it is loaded, and before an export."""

from dataclasses import replace

import pytest
import torch

from safetykit.adapters import Adapter, InvalidArtifact, UsageError, VLMGuard
from safetykit.adapters.artifact.deciding import constant_decisions, require_deciding
from safetykit.adapters.artifact.folder import TENSORS

NEVER, ALWAYS = 1e30, -1e30


@pytest.fixture
def guard(planted, records):
    return VLMGuard(layers=(1, 2), gate="calibrated", false_positive_rate=0.1).fit(planted, records)


def spoiled(adapter, threshold, **attachments):
    """The adapter with another threshold in its second gate, as somebody would write it who seals it again."""
    first, second = adapter.interventions
    tensors = {**second.tensors, "threshold": torch.tensor(threshold)}
    kept = {name: value for name, value in {**adapter.attachments, **attachments}.items() if value is not None}
    return replace(adapter, interventions=(first, replace(second, tensors=tensors)), attachments=kept)


def test_a_fit_notes_between_which_scores_its_gates_decide(guard):
    for row, item in zip(guard.attachments["calibration"], guard.interventions, strict=True):
        low, high = row["scores"]
        assert low < item.tensors["threshold"] < high
    assert constant_decisions(guard) == []


@pytest.mark.parametrize("noted", ["noted", "not noted"])
@pytest.mark.parametrize(("threshold", "words"), [(NEVER, "never opens"), (ALWAYS, "is always open")])
def test_a_gate_with_a_threshold_that_no_state_crosses_is_refused(guard, tmp_path, threshold, words, noted):
    bad = spoiled(guard, threshold, **({} if noted == "noted" else {"calibration": None}))
    with pytest.raises(InvalidArtifact, match=rf"gate at decoder.layers.2 {words}: its threshold .?1e\+30"):
        Adapter.load(bad.save(tmp_path / "bad"))
    with pytest.raises(UsageError, match=words):
        require_deciding(bad)
    assert (tmp_path / "bad" / TENSORS).is_file()


def test_a_threshold_just_outside_of_what_was_seen_is_refused(guard):
    low, high = guard.attachments["calibration"][1]["scores"]
    for threshold, bad in ((low - 0.01, True), (low + 0.01, False), (high - 0.01, False), (high, True)):
        assert bool(constant_decisions(spoiled(guard, threshold))) == bad


def test_who_asks_for_it_gets_it_and_the_manifest_says_so(guard, tmp_path):
    hyper = {**guard.info.hyperparameters, "allow_constant_gate": True}
    asked = replace(spoiled(guard, NEVER), info=guard.info.model_copy(update={"hyperparameters": hyper}))
    loaded = Adapter.load(asked.save(tmp_path / "asked"))
    assert loaded.info.hyperparameters["allow_constant_gate"] is True
    assert "| allow_constant_gate | true |" in (tmp_path / "asked" / "README.md").read_text()


def test_a_fit_whose_gate_cannot_close_is_refused_unless_asked_for(planted, records, monkeypatch):
    """The paper's gate opens on h·v > 0, and all states may lie on one side of it."""
    state = planted.state
    monkeypatch.setattr(type(planted), "state", lambda self, record, layer: state(record, layer) + 1e3)
    for allowed in (True, False):
        settings = VLMGuard(layers=(1,), **({"allow_constant_gate": True} if allowed else {}))
        if allowed:
            assert settings.fit(planted, records).info.hyperparameters["allow_constant_gate"] is True
        else:
            with pytest.raises(UsageError, match="The gate at decoder.layers.1 .* --allow-constant-gate"):
                settings.fit(planted, records)
