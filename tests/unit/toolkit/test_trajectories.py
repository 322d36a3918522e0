"""What a trajectory holds is what the model saw and said while it answered."""

import pytest
import torch

from safetykit import Record, Request, Site
from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.manifest import AdapterInfo, DataInfo

SITES = [Site.block(1), Site.block(4)]
TOKENS = 5


@pytest.fixture(scope="module")
def records():
    prompts = ("what is a kite ?", "what is it ?", "tell me about the kite and what it is for", "is it red ?")
    return [Record(id=str(at), prompt=one, label="harmless", split="fit") for at, one in enumerate(prompts)]


def followed(vlm, records):
    found = {}
    for batch, trajectories in vlm.trajectories(records, SITES, TOKENS):
        rows = zip(batch, trajectories.states, trajectories.lengths.tolist(), trajectories.texts, strict=True)
        found |= {record.id: (states[:length], text) for record, states, length, text in rows}
    return found


def replayed(vlm, record, calls):
    """The states that one pass over the prompt and the answer gives at the last ``calls`` positions."""
    inputs = vlm.prepare([Request(record.prompt)])
    answer = vlm.generate(record.prompt, TOKENS).token_ids[: calls - 1]
    ids = torch.cat([torch.from_numpy(inputs.input_ids), torch.tensor([list(answer)], dtype=torch.int64)], 1)
    with torch.inference_mode():
        hidden = vlm.model(input_ids=ids, output_hidden_states=True).hidden_states
    return torch.cat([hidden[site.layer + 1][0, -calls:] for site in SITES], 1)


def test_states_and_texts_are_those_of_the_models_own_greedy_answer(random_vlm, records):
    found = followed(random_vlm, records)
    for record in records:
        states, text = found[record.id]
        assert text == random_vlm.generate(record.prompt, TOKENS).text
        torch.testing.assert_close(states, replayed(random_vlm, record, len(states)), atol=1e-4, rtol=1e-4)


def test_the_call_whose_token_ends_the_answer_is_the_last_and_its_token_is_not_said(random_vlm, records, monkeypatch):
    tokens = random_vlm.generate(records[0].prompt, TOKENS).token_ids
    at = max(place for place, token in enumerate(tokens) if token not in tokens[:place])
    monkeypatch.setattr(random_vlm.inputs, "eos_token_ids", (tokens[at],))
    states, text = followed(random_vlm, records[:1])["0"]
    assert len(states) == at + 1
    assert text == random_vlm.inputs.generation(tokens[:at], {}).text


def test_applied_correctors_are_seen(random_vlm, records):
    width = random_vlm.base.d_model
    tensors = {"basis": torch.eye(width)[:, :1], "mean": torch.full((width,), 3.0), "beta": torch.tensor(1.0)}
    info = AdapterInfo(
        method="test",
        variant="test",
        sign_convention="none",
        hyperparameters={},
        seed=0,
        base=random_vlm.base,
        data=DataInfo(sha256="0" * 64, counts={}),
        versions={},
    )
    with random_vlm.applied(Adapter(info, (Intervention("SubspaceProjection", SITES[0], "all", "both", tensors),))):
        states, _ = followed(random_vlm, records[:1])["0"]
    torch.testing.assert_close(states[:, 0], torch.full((len(states),), 3.0))
