"""New weights exist inside the block only, and what they were is back on every way out."""

import json

import pytest
import torch
from PIL import Image

from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.updates import applied_updates, find_changes, save_updated, touches_vision, updated
from safetykit.toolkit.model.vlm import VLM

MLP = "model.language_model.layers.3.mlp.down_proj"
ATTENTION = "model.language_model.layers.1.self_attn.o_proj"
PROJECTOR = "model.multi_modal_projector.linear_2"
WIDTH = 128
REQUESTS = [Request("what is this ?", Image.new("RGB", (48, 48), (200, 30, 30))), Request("how do i use it ?")]


def weight(layer: str, columns: int = WIDTH, seed: int = 0) -> WeightUpdate:
    generator = torch.Generator().manual_seed(seed)
    up, down = 0.1 * torch.randn(WIDTH, 2, generator=generator), torch.randn(2, columns, generator=generator)
    return WeightUpdate(f"{layer}.weight", {"up": up, "down": down})


def bias(layer: str, seed: int = 1) -> WeightUpdate:
    return WeightUpdate(f"{layer}.bias", {"value": torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))})


UPDATES = [weight(MLP, 384), bias(MLP), weight(ATTENTION), weight(PROJECTOR), bias(PROJECTOR)]


def objects(model: torch.nn.Module) -> dict[str, int]:
    return {name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)}


def test_inside_the_layers_compute_with_the_new_weights(random_vlm):
    layer, x = random_vlm.model.get_submodule(MLP), torch.randn(3, 384)
    before = layer(x)
    with applied_updates(random_vlm.model, UPDATES):
        change = (x @ UPDATES[0].tensors["down"].T) @ UPDATES[0].tensors["up"].T + UPDATES[1].tensors["value"]
        assert torch.allclose(layer(x), before + change, atol=1e-5)
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("fails", [False, True])
def test_the_very_same_tensors_are_back(random_vlm, fails):
    before, state = objects(random_vlm.model), {name: t.clone() for name, t in random_vlm.model.state_dict().items()}
    try:
        with applied_updates(random_vlm.model, UPDATES):
            assert objects(random_vlm.model) != before
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert objects(random_vlm.model) == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in random_vlm.model.state_dict().items())
    assert random_vlm.model.get_submodule(MLP).bias is None


def test_one_bad_update_among_good_ones_changes_nothing(random_vlm):
    before = objects(random_vlm.model)
    with pytest.raises(InvalidArtifact), applied_updates(random_vlm.model, [*UPDATES, weight(MLP, WIDTH)]):
        pass
    assert objects(random_vlm.model) == before


def test_a_failure_half_way_through_putting_weights_in_restores_them(random_vlm, monkeypatch):
    before, real = objects(random_vlm.model), torch.nn.Parameter
    made = []

    def failing(*args, **kwargs):
        if len(made) == 2:
            raise MemoryError
        made.append(None)
        return real(*args, **kwargs)

    monkeypatch.setattr("safetykit.toolkit.model.updates.nn.Parameter", failing)
    with pytest.raises(MemoryError), applied_updates(random_vlm.model, UPDATES):
        pass
    monkeypatch.undo()
    assert len(made) == 2 and objects(random_vlm.model) == before


def test_updates_of_one_parameter_compose(random_vlm):
    old = random_vlm.model.get_submodule(ATTENTION).weight
    first, second = weight(ATTENTION, seed=5), weight(ATTENTION, seed=6)
    (change,) = find_changes(random_vlm.model, [first, second])
    assert torch.allclose(change.new, second.apply(first.apply(old)), atol=1e-6)
    with applied_updates(random_vlm.model, [first]), applied_updates(random_vlm.model, [second]):
        assert torch.allclose(random_vlm.model.get_submodule(ATTENTION).weight, change.new, atol=1e-6)


def test_only_updates_outside_decoder_and_head_touch_vision(random_vlm):
    assert not touches_vision(random_vlm, UPDATES[:3])
    assert touches_vision(random_vlm, UPDATES[3:])


def test_image_features_follow_the_projectors_weights(random_vlm):
    before, _ = random_vlm.prefill(REQUESTS)
    with updated(random_vlm, UPDATES[3:]):
        inside, _ = random_vlm.prefill(REQUESTS)
    after, _ = random_vlm.prefill(REQUESTS)
    assert (inside[0] - before[0]).abs().max() > 0.1
    assert torch.equal(after, before)


def test_an_unknown_parameter_is_refused(random_vlm):
    for name in ("model.language_model.layers.9.mlp.down_proj.weight", f"{MLP}.scale", "model.norm.bias", "bias"):
        with pytest.raises(InvalidArtifact, match=f"has no parameter {name}.*another model, or for another version"):
            find_changes(random_vlm.model, [WeightUpdate(name, {"value": torch.ones(WIDTH)})])


def test_another_shape_is_refused(random_vlm):
    with pytest.raises(InvalidArtifact, match=r"down_proj.bias the shape \(7,\), the layer has 128 outputs"):
        find_changes(random_vlm.model, [WeightUpdate(f"{MLP}.bias", {"value": torch.ones(7)})])
    with pytest.raises(InvalidArtifact, match=r"gives shape \(128, 128\), the base has \(128, 384\)"):
        find_changes(random_vlm.model, [weight(MLP)])


def test_a_tied_weight_is_refused(random_vlm):
    shape = random_vlm.parts.head.weight.shape
    with pytest.raises(UsageError, match="embed_tokens.weight and lm_head.weight are one tied weight.*one layer alone"):
        find_changes(random_vlm.model, [WeightUpdate("lm_head.weight", {"value": torch.zeros(shape)})])


def test_a_saved_checkpoint_is_the_updated_model(random_vlm, tmp_path):
    save_updated(random_vlm, UPDATES, tmp_path / "new")
    config = json.loads((tmp_path / "new" / "config.json").read_text())["text_config"]
    assert (config["mlp_bias"], config["attention_bias"]) == (True, False)
    saved = VLM.from_pretrained(tmp_path / "new")
    with updated(random_vlm, UPDATES):
        expected, _ = random_vlm.prefill(REQUESTS)
    assert torch.equal(saved.prefill(REQUESTS)[0], expected)
    assert saved.parts.head.weight is saved.parts.embed_tokens.weight
    assert random_vlm.model.config.text_config.mlp_bias is False


def test_a_checkpoint_without_new_biases_keeps_its_configuration(random_vlm, tmp_path):
    save_updated(random_vlm, [weight(ATTENTION)], tmp_path / "new")
    new, old = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "new", random_vlm.path))
    for config in (new, old):
        for part in (config["text_config"], config["vision_config"]):
            part.pop("dtype", None)  # noted by transformers for each part once the model has been loaded
    assert new == old


def test_a_bias_that_the_architecture_cannot_hold_is_refused(random_vlm, tmp_path, monkeypatch):
    monkeypatch.setattr("safetykit.toolkit.model.updates._BIAS_FLAGS", ("attention_bias",))
    with pytest.raises(UsageError, match=rf"has no way to hold {MLP}.bias.*--mode fold, or write a PEFT adapter"):
        save_updated(random_vlm, [bias(MLP)], tmp_path / "new")
    assert not list(tmp_path.iterdir())
