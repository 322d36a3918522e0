"""Mediation and neurons on a model whose refusal circuit is known."""

import json

import numpy as np
import pytest
import torch
from planted_vlm import LOWERING, PLANTED, RAISING

from safetykit.adapters import Site, UsageError
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.diagnosis import patching
from safetykit.toolkit.diagnosis.blocking import answer_without, compare, windows
from safetykit.toolkit.diagnosis.mediation import Effects, mediate
from safetykit.toolkit.diagnosis.neurons import Attribution, drawn, foremost, verify
from safetykit.toolkit.diagnosis.pairs import POSITIONS, Pair, PairBatch, chunks, find_pairs, same_pictures, spread
from safetykit.toolkit.diagnosis.terms import KINDS
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
def refusal(vlm, records):
    return RefusalTokens.find(vlm, records, max_new_tokens=4)


def pairs_of(records, modality):
    return [pair for pair in find_pairs(records) if pair.modality == modality]


def batches(vlm, pairs):
    return (PairBatch.prepare(vlm, chunk) for chunk in chunks(pairs, 16))


def hooks(vlm):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in vlm.model.modules())


def test_the_planted_model_refuses_what_it_should(vlm, records, refusal):
    assert refusal.refused == 1.0
    assert vlm.inputs.tokenizer.convert_ids_to_tokens(list(refusal.token_ids)) == ["sorry"]
    harmless = [Request(record.prompt, record.picture()) for record in records if record.label == "harmless"]
    assert not any("sorry" in answer.text for answer in vlm.generate(harmless, 4))


@pytest.mark.parametrize("modality", ["textual", "visual"])
def test_planted_neurons_are_in_the_top_percent_with_the_right_sign(vlm, records, refusal, modality, record_property):
    """All of them: 11 of 3072 neurons, and the first percent holds 30."""
    attribution = Attribution(POSITIONS[modality])
    for batch in batches(vlm, pairs_of(records, modality)):
        attribution.add(len(batch.pairs), attribution.of(vlm, batch, refusal))
    means = attribution.mean()["all"]
    top = foremost(means, means.size // 100)
    recall = len(set(top) & set(PLANTED)) / len(PLANTED)
    record_property("recall in the top 1 %", recall)
    assert recall == 1.0
    assert all(means[neuron] < 0 for neuron in RAISING)  # benign activation: less inclined to refuse
    assert all(means[neuron] > 0 for neuron in LOWERING)


@pytest.mark.slow
def test_exact_effects_confirm_the_planted_neurons_and_no_others(vlm, records, refusal):
    pairs = pairs_of(records, "textual")
    attribution = Attribution(("all",))
    for batch in batches(vlm, pairs):
        attribution.add(len(batch.pairs), attribution.of(vlm, batch, refusal))
    means = attribution.mean()["all"]
    random = drawn(means, 24, PLANTED, seed=0)
    assert len(set(random)) == 24 and not set(random) & set(PLANTED)
    chosen = [*PLANTED, *random]
    parts = [verify(vlm, batch, refusal, chosen, "all") for batch in batches(vlm, pairs)]
    exact = np.concatenate(parts, axis=-1).mean(-1)
    assert (exact[: len(RAISING)] < 0).all() and (exact[len(RAISING) : len(PLANTED)] > 0).all()
    assert np.abs(exact[: len(PLANTED)]).min() > 2 * np.abs(exact[len(PLANTED) :]).max()
    given = np.array([means[neuron] for neuron in PLANTED])
    assert np.corrcoef(given, exact[: len(PLANTED)])[0, 1] > 0.9


def test_attribution_is_the_derivative_of_exact_patching(vlm, records, refusal):
    """Patching a hundredth of the way changes the margin by a hundredth of the attribution."""
    batch = PairBatch.prepare(vlm, pairs_of(records, "textual")[:6])
    attribution = Attribution(("all",))
    attribution.add(len(batch.pairs), attribution.of(vlm, batch, refusal))
    (layer, neuron), share = PLANTED[0], 0.01

    def part_way(module, args):
        hidden = args[0].clone()
        gap = batch.counterpart(hidden) - hidden
        hidden[..., neuron] += share * torch.where(batch.masks["all"], gap[..., neuron], 0.0)
        return (hidden,)

    plain = patching.margins(vlm, batch, refusal)
    handle = patching.mlp_output(vlm, layer).register_forward_pre_hook(part_way)
    moved = patching.margins(vlm, batch, refusal)
    handle.remove()
    change = (moved - plain)[:6].mean().item() / share
    assert change == pytest.approx(float(attribution.mean()["all"][layer, neuron]), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["textual", "visual"])
def test_a_mediator_that_screens_off_everything_has_the_whole_effect(vlm, records, refusal, modality):
    """A block's output at all positions: NIE = TE, NDE = 0 and so TE = NIE + NDE, in every layer."""
    batch = PairBatch.prepare(vlm, pairs_of(records, modality)[:8])
    effects = mediate(vlm, batch, refusal, ("all", "last"))
    block = KINDS.index("block")
    assert np.allclose(effects.nie[0, block], effects.total, atol=1e-3)
    assert np.allclose(effects.nde[0, block], 0, atol=1e-3)
    assert np.allclose(effects.nie[1, block, -1], effects.total, atol=1e-3)  # nothing after it reads other positions
    assert effects.total.mean() < -3  # benign minus malicious: harm raises refusal
    assert np.array_equal(effects.total, effects.benign - effects.malicious)


def test_image_and_text_tokens_split_the_path_of_a_picture(vlm, records, refusal):
    """The planted head moves the trigger out of the image tokens in layer 0: after it they carry next to nothing."""
    batch = PairBatch.prepare(vlm, pairs_of(records, "visual")[:8])
    effects = mediate(vlm, batch, refusal, ("vision", "text"))
    block = KINDS.index("block")
    assert np.abs(effects.nie[0, block].mean(-1)).max() < 0.1 * abs(effects.total.mean())
    assert effects.nie[1, block, 0].mean() < 0.9 * effects.total.mean()


@pytest.mark.slow
def test_patching_with_itself_changes_nothing(vlm, records, refusal):
    pairs = pairs_of(records, "visual")[:4]
    batch = PairBatch.prepare(vlm, [Pair(pair.malicious, pair.malicious) for pair in pairs])
    effects = mediate(vlm, batch, refusal, POSITIONS["visual"])
    assert (effects.nie == 0).all() and (effects.nde == 0).all()
    exact = verify(vlm, batch, refusal, PLANTED[:3], "all")
    assert (exact == 0).all()


def test_every_swap_leaves_the_model_as_it_was(vlm, records, refusal):
    batch = PairBatch.prepare(vlm, pairs_of(records, "textual")[:4])
    before, plain = hooks(vlm), patching.margins(vlm, batch, refusal)
    with pytest.raises(RuntimeError), patching.swapped(vlm, batch, Site.block(2), "all"):
        assert hooks(vlm) == before + 1
        raise RuntimeError
    with pytest.raises(RuntimeError), patching.neuron_swapped(vlm, batch, 2, 7, "all"):
        raise RuntimeError
    with pytest.raises(RuntimeError), patching.skipped(vlm, (2, 3)):
        assert hooks(vlm) == before + 2
        raise RuntimeError
    with pytest.raises(UsageError, match="decoder has 8 layers"), patching.skipped(vlm, (2, 99)):
        pass
    Attribution(("all",)).of(vlm, batch, refusal)
    assert hooks(vlm) == before
    assert torch.equal(patching.margins(vlm, batch, refusal), plain)


def test_weights_keep_their_wish_for_gradients(random_vlm, records, refusal):
    wishes = [parameter.requires_grad for parameter in random_vlm.model.parameters()]
    Attribution(("all",)).of(random_vlm, PairBatch.prepare(random_vlm, pairs_of(records, "visual")[:2]), refusal)
    assert [parameter.requires_grad for parameter in random_vlm.model.parameters()] == wishes
    assert all(parameter.grad is None for parameter in random_vlm.model.parameters())


def test_a_skipped_block_hands_on_what_it_got(vlm):
    seen = {}
    layers = vlm.parts.layers
    handles = [
        layers[2].register_forward_hook(lambda _, __, output: seen.__setitem__("in", output)),
        layers[5].register_forward_pre_hook(lambda _, args: seen.__setitem__("out", args[0])),
    ]
    with patching.skipped(vlm, (3, 4)):
        vlm.prefill([Request("how do i use a dagger ?")])
    for handle in handles:
        handle.remove()
    assert torch.equal(seen["in"], seen["out"])


def test_skipping_the_planted_layers_stops_refusals(vlm, records):
    harmful = [record for record in records if record.label == "harmful" and record.image is None]
    outcomes = {layers: answer_without(vlm, harmful, layers, 4, 32) for layers in [(), (2, 3), (6, 7)]}
    rows = {row.layers: row for row in compare(outcomes, seed=0)}
    assert rows[()].refused.rate == 1.0 and rows[()].refused_change.value == 0
    assert rows[(2, 3)].refused_change.high < -0.3
    assert rows[(6, 7)].refused_change.low > rows[(2, 3)].refused_change.high


def test_windows_are_the_whole_model_and_every_pair_of_neighbours():
    assert windows(4) == [(), (0, 1), (1, 2), (2, 3)]
    assert windows(1) == [(), (0,)]


def test_tokens_correspond_by_kind_and_from_the_right(vlm, records):
    bad, good = pairs_of(records, "visual")[0].malicious, pairs_of(records, "visual")[0].benign
    longer = good.model_copy(update={"prompt": "hello , how do i use the thing in the picture ?"})
    batch = PairBatch.prepare(vlm, [Pair(bad, longer)])
    ids = batch.arguments["input_ids"]
    image = vlm.inputs.image_token_id
    matched = batch.masks["all"]
    partner = ids[batch.source_rows, batch.source_positions]
    assert torch.equal(ids[matched], partner[matched])  # same wording, so corresponding tokens are the same
    assert torch.equal(batch.masks["vision"], ids == image)
    assert matched[0].sum() == (ids[0] != vlm.inputs.pad_token_id).sum()
    unmatched = ids[1][~matched[1]]
    assert vlm.inputs.tokenizer.convert_ids_to_tokens(unmatched.tolist()) == ["hello", ","]
    assert (batch.masks["vision"] | batch.masks["text"]).equal(matched)
    assert batch.masks["last"].sum() == 2 and batch.masks["last"][:, -1].all()


def test_padding_is_never_patched_and_does_not_matter(vlm, records, refusal):
    pairs = pairs_of(records, "textual")
    short, long = pairs[0], Pair(*(_longer(half) for half in (pairs[1].malicious, pairs[1].benign)))
    together = mediate(vlm, PairBatch.prepare(vlm, [short, long]), refusal, ("all", "last"))
    alone = [mediate(vlm, PairBatch.prepare(vlm, [pair]), refusal, ("all", "last")) for pair in (short, long)]
    assert np.allclose(together.nie, Effects.join(alone).nie, atol=2e-3)
    assert np.allclose(together.nde, Effects.join(alone).nde, atol=2e-3)


def _longer(record):
    return record.model_copy(update={"prompt": f"hello , hello , hello , {record.prompt}"})


def test_only_mutual_pairs_of_one_carrier_count(records):
    def record(name, label, pair, carrier="text"):
        return Record(id=name, prompt=name, label=label, pair=pair, carrier=carrier, split="fit")

    good = [record("a", "harmful", "b"), record("b", "harmless", "a")]
    assert [(pair.malicious.id, pair.benign.id) for pair in find_pairs(good)] == [("a", "b")]
    for other in (
        record("b", "harmless", "c"),  # names another
        record("b", "harmful", "a"),  # the same label
        record("b", "harmless", "a", "text+image"),
        record("x", "harmless", "a"),  # the named one is missing
    ):
        assert find_pairs([good[0], other]) == []
    assert len(find_pairs(records)) == 50


def test_pairs_whose_pictures_differ_in_tokens_are_left_out(vlm, records, monkeypatch):
    pairs = find_pairs(records)
    prepare, odd = vlm.inputs.prepare, {"calls": 0}

    def prepared(requests):
        inputs = prepare(requests)
        if requests[0].image is not None:
            odd["calls"] += 1
            if odd["calls"] == 1:
                inputs.vision_mask[0, 2] = False
        return inputs

    monkeypatch.setattr(vlm.inputs, "prepare", prepared)
    assert len(same_pictures(vlm.inputs, pairs)) == len(pairs) - 1


def test_a_spread_is_even_and_keeps_order():
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread("abc", 5) == ["a", "b", "c"]


def test_an_mlp_without_a_known_output_is_refused_with_advice(vlm, monkeypatch):
    monkeypatch.setattr(patching, "_MLP_OUTPUTS", ("something_else",))
    with pytest.raises(UsageError, match="--neurons 0"):
        patching.mlp_output(vlm, 0)


def test_effects_survive_json_exactly(vlm, records, refusal):
    """What the journal keeps is what was computed."""
    effects = mediate(vlm, PairBatch.prepare(vlm, pairs_of(records, "textual")[:2]), refusal, ("last",))
    back = np.array(json.loads(json.dumps(effects.nie.tolist())), np.float32)
    assert np.array_equal(back, effects.nie)
