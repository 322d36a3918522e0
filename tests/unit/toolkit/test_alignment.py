"""Text-guided alignment end to end on a small untrained model: what is trained, what stays, and what a run leaves."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from safetykit.adapters.artifact.output import claimed
from safetykit.adapters.errors import LeftBehind, UsageError
from safetykit.adapters.tga.settings import TGA
from safetykit.toolkit.alignment import Aligner, forward, trainer
from safetykit.toolkit.alignment.targets import trained
from safetykit.toolkit.data.captions import captions_path, load_captions
from safetykit.toolkit.data.records import load_records
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.updates import updated

SHORT = {"steps": 4, "batch_size": 4, "layers": (2, 4), "shuffled": 0.4, "prefixed": 0.4, "lr": 1e-3}


@pytest.fixture(scope="module")
def captions():
    return load_captions(captions_path("reference"))[::27]


def short(variant: str) -> dict:
    """Settings of a short fit, as far as the variant has them."""
    return {"layers": SHORT["layers"]} if variant == "closed-form" else SHORT


def same(one, other) -> bool:
    return [item.parameter for item in one.updates] == [item.parameter for item in other.updates] and all(
        torch.equal(mine.tensors[name], theirs.tensors[name])
        for mine, theirs in zip(one.updates, other.updates, strict=True)
        for name in mine.tensors
    )


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["projector", "low-rank", "lora", "closed-form"])
def test_a_fit_leaves_the_model_as_it_was_and_its_updates_move_pictures(random_vlm, captions, variant):
    before = {name: value.clone() for name, value in random_vlm.model.state_dict().items()}
    flags = {name: item.requires_grad for name, item in random_vlm.model.named_parameters()}
    adapter = TGA(variant=variant, **short(variant)).fit(Aligner(random_vlm, captions))
    after = random_vlm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert flags == {name: item.requires_grad for name, item in random_vlm.model.named_parameters()}
    assert not hasattr(random_vlm.model, "peft_config")
    shown = [Request("what is this?", captions[0].picture())]
    base = random_vlm.prefill(shown)[0]
    with updated(random_vlm, adapter.updates):
        assert not torch.allclose(random_vlm.prefill(shown)[0], base, atol=1e-4)
    assert torch.equal(random_vlm.prefill(shown)[0], base)


@pytest.mark.parametrize("variant", ["projector", "low-rank", "closed-form"])
def test_variants_without_the_decoder_leave_text_alone(random_vlm, captions, variant):
    adapter = TGA(variant=variant, **short(variant)).fit(Aligner(random_vlm, captions))
    assert all("multi_modal_projector" in item.parameter for item in adapter.updates)
    asked = [Request("what is a dagger?")]
    base = random_vlm.prefill(asked)[0]
    with updated(random_vlm, adapter.updates):
        assert torch.equal(random_vlm.prefill(asked)[0], base)


def test_low_rank_variants_are_lora_of_peft_on_the_named_parts(random_vlm):
    from peft import PeftModel
    from peft.tuners.lora import Linear

    for variant, inside in (("low-rank", ("multi_modal_projector",)), ("lora", ("multi_modal_projector", "layers"))):
        with trained(random_vlm, TGA(variant=variant, rank=3)) as found:
            assert isinstance(found.peft, PeftModel)
            layers = {name: item for name, item in found.peft.named_modules() if isinstance(item, Linear)}
            assert {part for part in inside if any(part in name for name in layers)} == set(inside)
            assert all(item.lora_A["default"].weight.shape[0] == 3 for item in layers.values())
            assert not any("vision_tower" in name or "lm_head" in name for name in layers)
            assert all("lora_" in name for name in found.parameters)


def test_only_the_target_gets_a_gradient(random_vlm, captions):
    aligner = Aligner(random_vlm, captions)
    settings = TGA(variant="projector", **SHORT)
    losses, batches, found = prepared(aligner, settings)
    with found as target:
        losses = losses(target)
        losses.weighted(losses(batches(0))).backward()
        graded = {name for name, item in random_vlm.model.named_parameters() if item.grad is not None}
        assert graded == set(target.parameters)
        assert all(item.grad.abs().max() > 0 for item in target.parameters.values())
    assert all(item.grad is None for item in random_vlm.model.parameters())


def test_text_twins_are_those_of_the_base_also_while_the_decoder_is_trained(random_vlm):
    asked = [Request("what is a dagger?")]
    base = random_vlm.prefill(asked)[0]
    with trained(random_vlm, TGA(variant="lora")) as found:
        with torch.no_grad():
            for parameter in found.parameters.values():
                parameter.normal_()
        assert not torch.allclose(random_vlm.prefill(asked)[0], base, atol=1e-3)
        with found.base():
            assert torch.equal(random_vlm.prefill(asked)[0], base)


OTHER = {
    "variant": "projector",
    "layers": (2,),
    "guide_weight": 3.0,
    "centred": False,
    "retrieval": False,
    "prefixed": 0.9,
    "request_weight": 3.0,
    "opening_weight": 0.0,
    "shuffled": 1.0,
    "ce_weight": 0.1,
    "steps": 2,
    "batch_size": 6,
    "accumulate": 2,
    "budget": 4.0,
    "lr": 1e-2,
    "rank": 2,
    "ridge": 50.0,
    "seed": 7,
}


@pytest.fixture(scope="module")
def shortest(random_vlm, captions):
    """``shortest(**settings)``: a fit of one step on a few pictures; the same settings are fitted once."""
    aligner, known = Aligner(random_vlm, captions[:12]), {}

    def fit(**given):
        closed = given.get("variant") == "closed-form"
        settings = TGA(**({} if closed else {"variant": "low-rank", "steps": 1, "batch_size": 4}) | given)
        key = settings.model_dump_json()
        if key not in known:
            known[key] = settings.fit(aligner)
        return known[key]

    return fit


@pytest.mark.slow
@pytest.mark.parametrize("field", TGA.model_fields)
def test_a_setting_of_tga_that_is_accepted_changes_the_weights(shortest, field):
    also = {"ridge": {"variant": "closed-form"}, "budget": {"steps": 2}}.get(field, {})
    assert not same(shortest(**also), shortest(**also | {field: OTHER[field]}))


def test_a_seed_makes_a_fit_reproducible_and_another_seed_another_fit(random_vlm, captions):
    one, again, other = (
        TGA(variant="low-rank", seed=seed, **SHORT).fit(Aligner(random_vlm, captions)) for seed in (0, 0, 1)
    )
    assert same(one, again)
    assert one.attachments["training"]["terms"] == again.attachments["training"]["terms"]
    assert not same(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["projector", "lora"])
def test_an_interrupted_fit_goes_on_to_the_same_result(random_vlm, captions, tmp_path, monkeypatch, variant):
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 2)
    settings = TGA(variant=variant, **short(variant))
    whole = settings.fit(Aligner(random_vlm, captions))
    steps: list[int] = []

    def interrupt(step, total):
        steps.append(step)
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        settings.fit(Aligner(random_vlm, captions, work=tmp_path / "work", progress=interrupt))
    resumed = Aligner(random_vlm, captions, work=tmp_path / "work", progress=lambda step, total: steps.append(step))
    adapter = settings.fit(resumed)
    assert steps == [1, 2, 3, 3, 4]  # the third step was lost with the interruption, the first two were not
    assert same(whole, adapter)
    assert whole.attachments["training"]["terms"] == adapter.attachments["training"]["terms"]
    resumed.finish()
    assert not (tmp_path / "work").exists()


def test_a_checkpoint_of_other_settings_is_not_gone_on_with(random_vlm, captions, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHECKPOINT_EVERY", 2)
    steps: list[int] = []
    TGA(**SHORT).fit(Aligner(random_vlm, captions, work=tmp_path / "work"))
    changed = TGA(**{**SHORT, "ce_weight": 0.5})
    aligner = Aligner(random_vlm, captions, work=tmp_path / "work", progress=lambda step, _: steps.append(step))
    with pytest.raises(UsageError, match="2 steps of an interrupted command are kept .* had other: --ce-weight"):
        changed.fit(aligner)
    assert steps == []
    with claimed(tmp_path / "out", overwrite=True, spent=[tmp_path / "work"]), pytest.warns(LeftBehind):
        changed.fit(aligner)
    assert steps == [1, 2, 3, 4]


def test_the_attachments_hold_a_curve_and_the_nearness_per_layer(random_vlm, captions):
    adapter = TGA(**SHORT).fit(Aligner(random_vlm, captions))
    training, alignment = adapter.attachments["training"], adapter.attachments["alignment"]
    assert training["steps"] == [1, 2, 3, 4]
    assert set(training["terms"]) == {"loss", "guide", "request", "opening", "answer"}
    assert all(len(curve) == 4 for curve in training["terms"].values())
    assert training["device"] == "cpu" and training["precision"] == "float32" and training["seconds"] >= 0
    assert set(alignment) == {"2", "4"}
    for layer in alignment.values():
        for found in layer.values():
            assert set(found) == {"caption", "unrelated", "centred_caption", "centred_unrelated"}
            assert all(-1.001 <= value <= 1.001 for value in found.values())
    json.dumps(adapter.attachments, allow_nan=False)


@pytest.mark.slow
def test_training_brings_pictures_nearer_to_their_captions(random_vlm, captions):
    settings = TGA(variant="projector", **{**SHORT, "steps": 30}, request_weight=0, opening_weight=0, ce_weight=0)
    adapter = settings.fit(Aligner(random_vlm, captions))
    for layer in adapter.attachments["alignment"].values():
        assert layer["after"]["centred_caption"] > layer["before"]["centred_caption"] + 0.1


def test_an_adapter_reads_back_with_its_updates_and_curve(random_vlm, captions, tmp_path):
    from safetykit.adapters.artifact.adapter import Adapter

    adapter = TGA(variant="low-rank", **SHORT).fit(Aligner(random_vlm, captions))
    adapter.save(tmp_path / "adapter")
    back = Adapter.load(tmp_path / "adapter")
    assert same(adapter, back) and back.info == adapter.info
    assert back.attachments["training"] == adapter.attachments["training"]


def test_records_are_refused_because_they_carry_labels(random_vlm):
    records = load_records(data_path("reference"), ["fit"])
    with pytest.raises(UsageError, match="trained without safety labels"):
        Aligner(random_vlm, records)


def test_a_model_in_half_precision_is_refused(random_vlm, captions):
    vlm = copy.copy(random_vlm)
    vlm.model = copy.deepcopy(random_vlm.model).to(torch.bfloat16)
    with pytest.raises(UsageError, match="bfloat16; small steps would be rounded away"):
        Aligner(vlm, captions)


def prepared(aligner, settings):
    """Losses (given a target), batches and the context that makes the target trainable."""
    from safetykit.toolkit.alignment.batches import Batches
    from safetykit.toolkit.alignment.trainer import Losses

    vlm, layers = aligner.vlm, settings.layers_of(len(aligner.vlm.parts.layers))
    texts = aligner.text_states(layers, aligner.picture_states(layers), settings.retrieval)
    batches = Batches(
        vlm.inputs,
        aligner.captions,
        aligner.retrieved,
        size=settings.batch_size,
        seed=settings.seed,
        shuffled=settings.shuffled,
        prefixed=settings.prefixed,
    )
    return (lambda target: Losses(vlm, settings, aligner.features, texts, target), batches, trained(vlm, settings))


@pytest.fixture
def app():
    from safetykit.cli import application

    return application(["fit"])


def test_the_command_fits_and_saves_an_adapter(random_checkpoint, captions, tmp_path, app):
    from typer.testing import CliRunner

    from safetykit.adapters.artifact.adapter import Adapter

    data, out = few(captions, tmp_path), tmp_path / "adapter"
    options = ["--variant", "low-rank", "--layers", "2-3", "--steps", "2", "--batch-size", "4", "--rank", "2", "--json"]
    result = CliRunner().invoke(
        app, ["fit", "tga", str(random_checkpoint), "--data", str(data), "-o", str(out), *options]
    )
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["method"] == "tga" and shown["data"]["counts"]["captions"] == len(captions)
    adapter = Adapter.load(out)
    assert adapter.info.hyperparameters["layers"] == [2, 3] and len(adapter.updates) == 2
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["adapter", "captions.jsonl", "pictures"]  # and no work folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--variant", "magic"], "--variant cannot be 'magic'"),
        (["--steps", "0"], "--steps cannot be 0. It is at least 1."),
        (["--map", "nowhere"], "There is no channel map at nowhere"),
        ([], "There are no captions at nowhere"),
    ],
)
def test_a_bad_request_is_refused_before_a_model_is_loaded(tmp_path, app, options, words):
    from typer.testing import CliRunner

    result = CliRunner().invoke(
        app, ["fit", "tga", "no-model", "--data", "nowhere", "-o", str(tmp_path / "out"), *options]
    )
    assert isinstance(result.exception, UsageError) and words in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_retrieved_texts_can_come_from_a_caption_index(random_vlm, captions, tmp_path):
    from safetykit.toolkit.alignment.neighbours import FromIndex
    from safetykit.toolkit.retrieval.build import build_index
    from safetykit.toolkit.retrieval.embedders import VLMEmbedder

    words = list(dict.fromkeys(item.caption for item in captions))
    index = build_index(lambda: iter([*words, "something else."]), VLMEmbedder(random_vlm), tmp_path / "index")
    found = Aligner(random_vlm, captions, FromIndex(random_vlm, index)).retrieved
    assert set(found) <= {*words, "something else."}
    assert all(text != item.caption for text, item in zip(found, captions, strict=True))


def few(captions, folder):
    """The captions as a file with its pictures beside it."""
    (folder / "pictures").mkdir()
    lines = []
    for at, item in enumerate(captions):
        item.picture().save(folder / "pictures" / f"{at}.png")
        lines.append({**item.model_dump(), "image": f"pictures/{at}.png"})
    path = folder / "captions.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_features_that_were_cut_off_are_made_again(random_vlm, captions, tmp_path, monkeypatch):
    save, path = forward.save_file, tmp_path / "features.safetensors"

    def cut(found, target):
        save(found, target)
        target.write_bytes(target.read_bytes()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(forward, "save_file", cut)
    with pytest.raises(KeyboardInterrupt):
        forward.PictureFeatures(random_vlm, captions[:2], path)
    monkeypatch.setattr(forward, "save_file", save)
    made = forward.PictureFeatures(random_vlm, captions[:2], path)
    assert torch.equal(made.means, forward.PictureFeatures(random_vlm, captions[:2]).means)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
