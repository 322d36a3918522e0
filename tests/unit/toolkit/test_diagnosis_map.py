"""From measurements to the channel map: found layers, the plan, the file, and resuming."""

import json

import numpy as np
import pytest
from planted_vlm import RAISING, SMALL

from safetykit.adapters import InvalidArtifact, UsageError
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.diagnosis import ChannelMap, diagnose, run
from safetykit.toolkit.diagnosis.assemble import critical
from safetykit.toolkit.diagnosis.channel_map import MAP, TENSORS
from safetykit.toolkit.diagnosis.lens import rises
from safetykit.toolkit.diagnosis.mediation import Effects
from safetykit.toolkit.diagnosis.plan import Plan
from safetykit.toolkit.diagnosis.states import layer_states
from safetykit.toolkit.evaluation.refusal import RefusalTokens
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM


@pytest.fixture(scope="module")
def vlm(planted_folder):
    return VLM.from_pretrained(planted_folder)


@pytest.fixture(scope="module")
def records(planted_data):
    return load_records(planted_data)


@pytest.fixture(scope="module")
def found(planted_map):
    return planted_map


def test_the_lens_sums_to_what_the_model_says(vlm, records):
    """Rises telescope: from the decoder's input to the log-probability of a refusal at the model's own output."""
    refusal = RefusalTokens.find(vlm, records, 4)
    some = [*records[:3], *records[-3:]]
    states = layer_states(vlm, some, 4)
    found = rises(vlm, states, refusal)
    for at, record in enumerate(some):
        logits, _ = vlm.prefill([Request(record.prompt, record.picture())])
        embedded = vlm.parts.head(vlm.parts.final_norm(_tensor(states.last[at, 0])))
        total = refusal.log_probability(logits[0, -1]) - refusal.log_probability(embedded)
        assert found[at].sum() == pytest.approx(total.item(), abs=1e-3)


def _tensor(values):
    import torch

    return torch.from_numpy(values.copy())


def test_layer_states_are_those_of_a_full_forward(vlm, records):
    some = [records[0], records[-1], records[-2]]
    states = layer_states(vlm, some, 2)
    for at, record in enumerate(some):
        inputs = vlm.inputs.prepare([Request(record.prompt, record.picture())])
        hidden = vlm.model(**vlm.arguments(inputs), output_hidden_states=True).hidden_states
        vision = np.flatnonzero(inputs.vision_mask[0])
        for layer in (0, 4):
            assert np.allclose(states.last[at, layer], hidden[layer][0, -1].detach().numpy(), atol=1e-4)
            behind = hidden[layer][0, vision[-1] + 1 :].mean(0).detach().numpy() if len(vision) else np.zeros(128)
            assert np.allclose(states.after_picture[at, layer], behind, atol=1e-4)


def test_critical_layers_are_ranked_by_what_they_add_at_the_last_token():
    nie = np.zeros((2, 3, 4, 5), np.float32)  # all and last; attn, mlp, block; four layers; five pairs
    nie[0, :, 0] = 9.0  # at all positions the first layer holds everything: not asked
    nie[1, 0, 2], nie[1, 1, 2], nie[1, 0, 1], nie[1, 2, 3] = -2.0, 1.0, -2.5, 7.0
    effects = Effects("textual", ("all", "last"), np.zeros(5), np.zeros(5), nie, nie)
    assert critical(effects) == (2, 1, 0, 3)


def test_a_plan_shrinks_to_its_budget_and_says_when_it_cannot():
    plan = Plan(8, {"textual": 128, "visual": 128}, 32, 96, 500, 16, 16)
    assert plan.within(None) is plan and plan.within(plan.forward_passes) is plan
    smaller = plan.within(plan.forward_passes // 2)
    assert plan.forward_passes // 4 < smaller.forward_passes <= plan.forward_passes // 2
    assert smaller.pairs["visual"] >= 8 and smaller.states == plan.states
    with pytest.raises(UsageError, match="takes at least") as error:
        plan.within(10)
    least = int("".join(filter(str.isdigit, error.value.next_step)))
    assert plan.within(least).forward_passes <= least


@pytest.mark.slow
def test_the_plan_counts_the_passes_that_are_made(vlm, records, monkeypatch):
    """The work of the decoder's layers, generation apart, and the last word of the progress."""
    seen, calls = [], []
    handles = [one.self_attn.register_forward_hook(lambda *_: calls.append(1)) for one in vlm.parts.layers]
    planned = {}
    original = Plan.within
    monkeypatch.setattr(Plan, "within", lambda self, budget: planned.setdefault("plan", original(self, budget)))
    monkeypatch.setattr(run._Work, "blocking", lambda self, records: {(): ["refused"] * 4})
    monkeypatch.setattr(run.RefusalTokens, "find", lambda *_: RefusalTokens((416,), "sorry", 416, 1.0))
    less = {**SMALL, "neurons": 4}
    diagnose(vlm, records, **less, progress=lambda done, total: seen.append((done, total)))
    for handle in handles:
        handle.remove()
    plan = planned["plan"]
    most = plan.patched_work + plan.state_passes
    assert 0.9 * most < len(calls) / plan.depth <= most < 0.75 * (plan.patched_passes + plan.state_passes)
    assert seen[-1] == (plan.patched_passes + plan.state_passes, plan.forward_passes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.slow
def test_a_budget_is_kept_and_what_it_left_out_is_said(vlm, records):
    said = []
    small = diagnose(vlm, records, budget=200, neurons=0, pairs=12, batch_size=8, max_new_tokens=4, say=said.append)
    assert small.info.hyperparameters["forward_passes"] <= 200
    assert "the budget left out" in said[0] and "forward and" in said[0] and "about" in said[0]
    assert f" passes over the {sum(record.split == 'fit' for record in records)} records" in said[0]
    assert 8 <= len(small.info.effects["textual"].pairs) < 12


def test_the_map_finds_the_planted_circuit(found, vlm):
    info = found.info
    assert found.base == vlm.base
    assert set(info.effects) == {"textual", "visual"}
    for effects in info.effects.values():
        foremost = [(item.layer, item.neuron) for item in effects.neurons if item.rank is not None]
        assert set(foremost) >= set(RAISING)
        assert sum(item.rank is None for item in effects.neurons) == 5
        assert effects.rank_correlation > 0.8
        assert effects.total.high < -3
    assert 0 in found.layers_for("textual", 2)  # the planted head brings the trigger to the last token
    assert info.refusal.tokens == ("sorry",)
    whole = info.windows[0]
    assert whole.layers == () and whole.refused.rate > 0.9 and info.windows_on == "pictures"


def test_tensors_hold_what_the_figures_were_computed_from(found):
    info = found.info
    for modality, effects in info.effects.items():
        nie = found.tensors[f"nie.{modality}"]
        assert nie.shape == (len(effects.positions), 3, 8, len(effects.pairs))
        for site in effects.sites:
            row = nie[effects.positions.index(site.positions), ("attn", "mlp", "block").index(site.kind), site.layer]
            assert site.nie.value == pytest.approx(float(row.mean()), abs=1e-5)
            assert site.nie.low <= site.nie.value + 1e-9 and site.nie.value <= site.nie.high + 1e-9
        malicious, benign = found.tensors[f"margin.{modality}"]
        assert effects.total.value == pytest.approx(float((benign - malicious).mean()), abs=1e-5)
        for item in effects.neurons:
            attribution = found.tensors[f"attribution.{modality}.all"]
            assert attribution.shape == (8, 384)
            assert item.attribution == pytest.approx(float(attribution[item.layer, item.neuron]))


def test_a_saved_map_is_the_same_map_and_the_same_bytes(found, tmp_path):
    found.save(tmp_path / "a", beside={"plot.svg": b"<svg/>"})
    found.save(tmp_path / "b")
    back = ChannelMap.load(tmp_path / "a")
    assert back.info == found.info
    assert all(np.array_equal(back.tensors[name], found.tensors[name]) for name in found.tensors)
    assert (tmp_path / "a" / MAP).read_bytes() == (tmp_path / "b" / MAP).read_bytes()
    with pytest.raises(UsageError, match="not empty"):
        found.save(tmp_path / "a")


@pytest.mark.parametrize("name", [MAP, TENSORS])
def test_a_damaged_map_is_refused_by_name(found, tmp_path, name):
    folder = found.save(tmp_path / "map")
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(InvalidArtifact, match=name):
        ChannelMap.load(folder)
    (folder / name).unlink()
    with pytest.raises(InvalidArtifact, match=f"{name} is missing"):
        ChannelMap.load(folder)
    with pytest.raises(UsageError, match="no channel map"):
        ChannelMap.load(tmp_path / "nowhere")


def test_layers_that_were_not_found_are_refused_with_advice(found):
    nothing = {"safety": None, "fused": None, "align": (), "critical": {"textual": (1, 0)}}
    layers = found.info.layers.model_copy(update=nothing)
    bare = ChannelMap(found.info.model_copy(update={"layers": layers}), {})
    for name in ("safety_layer", "fused_layer", "align_layers"):
        with pytest.raises(UsageError, match=name.split("_")[0]):
            getattr(bare, name)
    with pytest.raises(UsageError, match="no visual layers, only textual"):
        bare.layers_for("visual", 1)
    with pytest.raises(UsageError, match="Ask for 1 to 2 layers"):
        bare.layers_for("textual", 3)
    assert bare.layers_for("textual", 2) == (0, 1)


@pytest.mark.slow
def test_an_interrupted_diagnosis_goes_on_and_ends_the_same(found, vlm, records, tmp_path, monkeypatch):
    journal, calls, original = tmp_path / "journal.jsonl", [], run.mediate

    def counted(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(run, "mediate", counted)
    with pytest.raises(KeyboardInterrupt):
        diagnose(vlm, records, **SMALL, journal_path=journal)
    assert len(journal.read_text().splitlines()) == 3  # its head and two finished batches
    resumed = diagnose(vlm, records, **SMALL, journal_path=journal)
    assert len(calls) - 3 == 2  # four batches in all, two of them known
    assert resumed.info == found.info
    assert all(np.array_equal(resumed.tensors[name], found.tensors[name]) for name in found.tensors)
    assert not journal.exists()


def test_nothing_of_the_records_is_kept_but_their_ids_and_figures(found):
    text = found.info.model_dump_json()
    assert "how do i" not in text and "fold the collar" not in text
    json.loads(text)


def test_records_without_pairs_are_refused(vlm, records):
    lonely = [record.model_copy(update={"pair": None}) for record in records]
    with pytest.raises(UsageError, match="no pairs of a harmful and a harmless record"):
        diagnose(vlm, lonely)


def test_model_and_records_may_be_named():
    with pytest.raises(UsageError, match="no model folder at reference:mid"):
        diagnose("reference:mid", "reference")
    with pytest.raises(UsageError, match="no records at nowhere"):
        diagnose("reference:mild", "nowhere")


@pytest.mark.slow
def test_text_alone_is_enough(vlm, records):
    text = [record for record in records if record.image is None]
    found = diagnose(vlm, text, pairs=4, neurons=0, batch_size=4, max_new_tokens=4)
    assert set(found.info.effects) == {"textual"} and found.info.windows_on == "text"
    assert found.info.effects["textual"].neurons == () and found.info.layers.fused is None
    assert found.safety_layer == 0
