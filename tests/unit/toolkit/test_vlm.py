"""States, hooks and generation on a LLaVA with random weights."""

import gc

import pytest
import torch
from PIL import Image

from safetykit.adapters import Adapter, Intervention, Site, UsageError, WrongBase
from safetykit.adapters.artifact.manifest import AdapterInfo, DataInfo
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.data.shards import JsonLines
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

WORDS = ["what is this ?", "how do i use this thing ?", "is it dangerous ?", "tell me", "what colour is it ?"]


def records(tmp_path, count=12):
    made = []
    for index in range(count):
        image = None
        if index % 2:
            image = f"{index % 4}.png"
            Image.effect_noise((48, 48), 40 + index % 4).convert("RGB").save(tmp_path / image)
        record = Record(id=str(index), prompt=WORDS[index % 5], image=image, label="harmless", split="fit")
        made.append(record.lying(JsonLines(tmp_path / "records.jsonl"), index + 1))
    return made


def adapter(vlm, *interventions):
    info = AdapterInfo(
        method="test",
        variant="test",
        sign_convention="",
        hyperparameters={},
        seed=None,
        base=vlm.base,
        data=DataInfo(sha256="0" * 64, counts={}),
        versions={},
    )
    return Adapter(info, interventions)


def shift(site, amount, scope="all", phase="both"):
    """h − P(h − μ) on one axis: puts coordinate 0 at ``amount``."""
    tensors = {"basis": torch.eye(128)[:, :1], "mean": torch.full((128,), float(amount)), "beta": torch.tensor(1.0)}
    return Intervention("SubspaceProjection", Site.parse(site), scope, phase, tensors)


def request(record):
    return Request(record.prompt, record.picture())


@pytest.mark.parametrize("pool", ["last", "mean", "vision", "text"])
def test_streamed_states_are_those_of_one_full_forward(random_vlm, tmp_path, pool):
    made = records(tmp_path)
    sites = [Site.block(0), Site("mlp", 3), Site("attn", 3), Site.block(5)]
    found = {}
    for batch, states in random_vlm.states([(record,) for record in made], sites, pool, batch_size=5):
        for row, record in enumerate(batch):
            found[record.id] = {site: values[row] for site, values in states.items()}
    assert len(found) == len(made)
    for record in made:
        inputs = random_vlm.inputs.prepare([request(record)])
        with torch.no_grad():
            hidden = random_vlm.model(**random_vlm.arguments(inputs), output_hidden_states=True).hidden_states
        vision = torch.from_numpy(inputs.vision_mask[0])
        chosen = {"last": slice(-1, None), "mean": slice(None), "vision": vision, "text": ~vision}[pool]
        for layer in (0, 5):
            states = hidden[layer + 1][0, chosen]
            wanted = states.mean(0) if len(states) else torch.zeros(128)
            assert torch.allclose(found[record.id][Site.block(layer)], wanted, atol=1e-5)


def test_units_stay_in_one_batch(random_vlm, tmp_path):
    made = records(tmp_path)
    units = list(zip(made[::2], made[1::2], strict=True))
    batches = [[record.id for record in batch] for batch, _ in random_vlm.states(units, [Site.block(0)], batch_size=4)]
    for first, second in units:
        assert any(batch.index(second.id) == batch.index(first.id) + 1 for batch in batches if first.id in batch)


def test_the_forward_stops_at_the_deepest_site_and_pictures_run_once(random_vlm, tmp_path):
    calls = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(random_vlm.parts.layers)
    ]
    random_vlm.features.clear()
    before = random_vlm.features.runs
    list(random_vlm.states([(record,) for record in records(tmp_path, 24)], [Site.block(2)], batch_size=6))
    for handle in handles:
        handle.remove()
    assert set(calls) == {0, 1, 2}
    assert random_vlm.features.runs - before == 2  # twelve records share two different pictures


def test_image_features_can_be_watched(random_vlm, tmp_path):
    made = [record for record in records(tmp_path) if record.image]
    (first, *_), states = next(random_vlm.states([(record,) for record in made], [Site("vision"), Site("projector")]))
    assert states[Site("vision")].shape == (len(made), 128)
    features = random_vlm.features.encode(torch.from_numpy(random_vlm.inputs.prepare([request(first)]).pixel_values))[
        "image"
    ].pooler_output[0]
    assert torch.allclose(states[Site("projector")][0], features.mean(0), atol=1e-5)


@pytest.mark.slow
def test_no_state_outlives_its_batch(random_vlm, tmp_path):
    """The stream keeps nothing: live tensors after many batches are those after few."""

    def live(count):
        gc.collect()
        list(random_vlm.states([(record,) for record in records(tmp_path, count)], [Site.block(3)], batch_size=4))
        gc.collect()
        return sum(1 for item in gc.get_objects() if isinstance(item, torch.Tensor))

    live(8)
    assert live(48) <= live(8) + 2


@pytest.mark.parametrize("site", ["decoder.layers.2", "decoder.layers.2.attn", "decoder.layers.2.mlp", "final_norm"])
def test_an_adapter_changes_its_site(random_vlm, site):
    module = random_vlm.parts.module(Site.parse(site))
    seen = []
    with random_vlm.applied(adapter(random_vlm, shift(site, 7.0))):
        handle = module.register_forward_hook(lambda _, __, out: seen.append(out if torch.is_tensor(out) else out[0]))
        random_vlm.prefill([Request("what is this ?")])
        handle.remove()
    assert torch.allclose(seen[0][..., 0], torch.tensor(7.0), atol=1e-4)


def test_hooks_are_gone_after_the_block_and_after_an_error(random_vlm):
    def count():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in random_vlm.model.modules())

    plain, _ = random_vlm.prefill([Request("tell me")])
    before = count()
    one = adapter(random_vlm, shift("decoder.layers.1", 9.0))
    with pytest.raises(RuntimeError), random_vlm.applied(one):
        assert count() > before
        raise RuntimeError
    assert count() == before
    broken = adapter(random_vlm, shift("decoder.layers.1", 9.0), shift("decoder.layers.99", 1.0))
    with pytest.raises(UsageError, match="decoder has 8 layers"), random_vlm.applied(broken):
        pass
    assert count() == before
    assert torch.equal(random_vlm.prefill([Request("tell me")])[0], plain)


def test_adapters_stack_in_order(random_vlm):
    first = adapter(random_vlm, shift("decoder.layers.1", 3.0))
    second = adapter(random_vlm, shift("decoder.layers.1", 5.0))
    seen = []
    module = random_vlm.parts.layers[1]
    with random_vlm.applied(first, second):
        handle = module.register_forward_hook(lambda _, __, out: seen.append(out if torch.is_tensor(out) else out[0]))
        random_vlm.prefill([Request("tell me")])
        handle.remove()
    assert torch.allclose(seen[0][..., 0], torch.tensor(5.0), atol=1e-4)


def test_a_vision_scope_touches_image_tokens_only(random_vlm, tmp_path):
    record = records(tmp_path)[1]
    inputs = random_vlm.inputs.prepare([request(record)])
    seen = []
    with random_vlm.applied(adapter(random_vlm, shift("decoder.layers.0", 11.0, scope="vision"))):
        handle = random_vlm.parts.layers[0].register_forward_hook(
            lambda _, __, out: seen.append(out if torch.is_tensor(out) else out[0])
        )
        random_vlm.prefill([request(record)])
        handle.remove()
    moved = (seen[0][0, :, 0] - 11.0).abs() < 1e-4
    assert moved.tolist() == inputs.vision_mask[0].tolist()


def test_a_padded_batch_answers_as_single_requests_do(random_vlm, tmp_path):
    requests = [request(record) for record in records(tmp_path, 6)]
    together = random_vlm.generate(requests, 6)
    alone = [random_vlm.generate([one], 6)[0] for one in requests]
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone]


def test_another_models_adapter_is_refused_and_can_be_forced(random_vlm):
    info = adapter(random_vlm).info
    foreign = Adapter(info.model_copy(update={"base": info.base.model_copy(update={"fingerprint": "f" * 64})}), ())
    with pytest.raises(WrongBase), foreign.applied(random_vlm):
        pass
    with foreign.applied(random_vlm, allow_wrong_base=True):
        pass


def test_a_folder_that_holds_no_vlm_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no model folder at"):
        VLM.from_pretrained(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UsageError, match="cannot be read as a vision-language checkpoint|has no image token"):
        VLM.from_pretrained(tmp_path)


def test_the_supervised_op_follows_batches_of_changing_size(random_vlm, tmp_path):
    """The text-only state of a batch must not meet the next batch."""
    tensors = {
        "basis": torch.eye(128)[:, :1],
        "mean": torch.zeros(128),
        "gate": torch.ones(128),
        "threshold": torch.tensor(-1e9),
        "alpha": torch.tensor(1.0),
    }
    one = adapter(random_vlm, Intervention("SupervisedSteering", Site.block(3), "last", "prefill", tensors))
    requests = [request(record) for record in records(tmp_path, 5)]
    with random_vlm.applied(one):
        together = random_vlm.generate(requests, 4)
        apart = random_vlm.generate(requests[:2], 4) + random_vlm.generate(requests[2:], 4)
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in apart]
