"""A folded adapter is a PEFT adapter, and a trained PEFT adapter is weight updates."""

import json

import peft
import pytest
import torch
from affine import adapter_of, projection
from PIL import Image
from torch import nn

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import UsageError
from safetykit.toolkit.model.folding import fold
from safetykit.toolkit.model.lora import write_peft
from safetykit.toolkit.model.lora_layers import updates_from_peft
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.updates import updated
from safetykit.toolkit.model.vlm import VLM

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
WIDTH = 128
PICTURE = Image.new("RGB", (48, 48), (200, 30, 30))
REQUESTS = [Request("what is this ?", PICTURE), Request("how do i use it ?")]
MLP = "model.language_model.layers.3.mlp.down_proj"
PROJECTOR = "model.multi_modal_projector.linear_2"


def logits(vlm) -> torch.Tensor:
    vlm.features.clear()
    values, inputs = vlm.prefill(REQUESTS)
    return values[torch.from_numpy(inputs.attention_mask).bool()]


def assert_close(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()


def with_peft(random_vlm, folder) -> torch.Tensor:
    """Logits of a fresh copy of the model onto which PEFT loads the folder."""
    other = VLM.from_pretrained(random_vlm.path)
    peft.PeftModel.from_pretrained(other.model, folder)
    return logits(other)


@pytest.fixture(scope="module")
def exact_vlm(random_vlm) -> VLM:
    """The same in float64, where rounding does not hide a wrong factor."""
    return VLM.from_pretrained(random_vlm.path, dtype="float64")


@pytest.fixture
def adapter(random_vlm):
    """Different ranks, two interventions at one site, one site without a shift; layer 1 beside layer 7."""
    return adapter_of(
        random_vlm.base,
        projection("decoder.layers.1.mlp", WIDTH, rank=3),
        projection("decoder.layers.1.mlp", WIDTH, rank=4, strength=2.5, orthonormal=False, seed=1),
        projection("decoder.layers.1.attn", WIDTH, rank=2, centred=False, seed=2),
        projection("decoder.layers.7.mlp", WIDTH, rank=5, seed=3),
    )


def test_peft_gives_the_logits_of_the_hooks(random_vlm, adapter, tmp_path):
    write_peft(random_vlm, fold(random_vlm, adapter), tmp_path / "peft")
    with random_vlm.applied(adapter):
        hooked = logits(random_vlm)
    ours = with_peft(random_vlm, tmp_path / "peft")
    assert_close(ours, hooked)
    assert (logits(random_vlm) - hooked).abs().max() > 1e-2 * hooked.abs().max()


def test_the_folder_holds_what_peft_reads_and_no_path_of_this_machine(random_vlm, adapter, tmp_path):
    folder = write_peft(random_vlm, fold(random_vlm, adapter), tmp_path / "peft")
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert write_peft(random_vlm, fold(random_vlm, adapter), folder, overwrite=True) == folder
    text = (folder / "adapter_config.json").read_text()
    assert str(random_vlm.path) not in text
    config = json.loads(text)
    assert config["lora_bias"] is True and config["bias"] == "none"
    assert set(config["target_modules"]) == {
        f"model.language_model.layers.{name}" for name in ("1.mlp.down_proj", "1.self_attn.o_proj", "7.mlp.down_proj")
    }


def test_the_same_adapter_gives_the_same_bytes(random_vlm, adapter, tmp_path):
    folded = fold(random_vlm, adapter)
    first, second = (write_peft(random_vlm, folded, tmp_path / name) for name in ("a", "b"))
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_without_a_shift_the_adapter_merges(random_vlm, tmp_path):
    plain = adapter_of(random_vlm.base, projection("decoder.layers.2.mlp", WIDTH, centred=False))
    write_peft(random_vlm, fold(random_vlm, plain), tmp_path / "peft")
    other = VLM.from_pretrained(random_vlm.path)
    peft.PeftModel.from_pretrained(other.model, tmp_path / "peft").merge_and_unload()
    with random_vlm.applied(plain):
        assert_close(logits(other), logits(random_vlm))


def test_a_layer_with_a_bias_and_a_bias_alone(random_vlm, tmp_path):
    """The projector has biases; an update of a bias alone is a LoRA that multiplies by zero."""
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(WIDTH, 2, generator=generator), 0.1 * torch.randn(2, WIDTH, generator=generator)
    updates = (
        WeightUpdate(f"{PROJECTOR}.weight", {"up": up, "down": down}),
        WeightUpdate(f"{PROJECTOR}.weight", {"up": down.T.contiguous(), "down": up.T.contiguous()}),
        WeightUpdate(f"{PROJECTOR}.bias", {"value": torch.randn(WIDTH, generator=generator)}),
        WeightUpdate(f"{MLP}.bias", {"value": torch.randn(WIDTH, generator=generator)}),
    )
    write_peft(random_vlm, Adapter(adapter_of(random_vlm.base).info, updates=updates), tmp_path / "peft")
    with updated(random_vlm, updates):
        expected = logits(random_vlm)
    assert_close(with_peft(random_vlm, tmp_path / "peft"), expected)


def test_writing_leaves_the_model_alone(random_vlm, adapter, tmp_path):
    before = {name: (id(p), p.requires_grad) for name, p in random_vlm.model.named_parameters()}
    write_peft(random_vlm, fold(random_vlm, adapter), tmp_path / "peft")
    assert {name: (id(p), p.requires_grad) for name, p in random_vlm.model.named_parameters()} == before


def trained(vlm, **options) -> peft.PeftModel:
    """LoRA as after training: every part random, scaling not 1."""
    options = {"target_modules": ["down_proj", "o_proj", "linear_2"], "r": 4, "lora_alpha": 10} | options
    torch.manual_seed(0)
    model = peft.get_peft_model(vlm.model, peft.LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"lora_bias": True}, {"use_rslora": True}, {"rank_pattern": {"o_proj": 2}}])
def test_a_trained_lora_is_weight_updates(exact_vlm, options):
    other = VLM.from_pretrained(exact_vlm.path, dtype="float64")
    updates = updates_from_peft(trained(other, **options))
    assert len([update for update in updates if update.low_rank]) == 17
    with updated(exact_vlm, updates):
        ours = logits(exact_vlm)
    assert_close(ours, logits(other))
    assert (ours - logits(exact_vlm)).abs().max() > 1e-2 * ours.abs().max()


def test_two_active_loras_add_up(exact_vlm):
    other = VLM.from_pretrained(exact_vlm.path, dtype="float64")
    model = trained(other, lora_bias=True)
    model.add_adapter("second", peft.LoraConfig(target_modules=["down_proj"], r=2, lora_alpha=3, lora_bias=True))
    for name, parameter in model.named_parameters():
        if "lora_" in name and "second" in name:
            nn.init.normal_(parameter, std=0.1)
    model.base_model.set_adapter(["default", "second"])
    with updated(exact_vlm, updates_from_peft(model.eval())):
        assert_close(logits(exact_vlm), logits(other))


def test_written_and_read_back(random_vlm, adapter, tmp_path):
    folded = fold(random_vlm, adapter)
    write_peft(random_vlm, folded, tmp_path / "peft")
    other = VLM.from_pretrained(random_vlm.path)
    read = updates_from_peft(peft.PeftModel.from_pretrained(other.model, tmp_path / "peft"))
    ours = {update.parameter: update.tensors for update in folded.updates}
    for update in read:
        expected = ours.get(update.parameter, {"value": torch.zeros(WIDTH)})  # PEFT has a bias on all layers or none
        assert all(torch.equal(tensor, expected[name]) for name, tensor in update.tensors.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "is not plain LoRA on a linear layer"),
        ({"modules_to_save": ["linear_1"]}, "linear_1 was trained as a whole"),
        ({"bias": "all"}, "own biases were trained"),
        ({"target_modules": ["embed_tokens"]}, r"embed_tokens \(Embedding\) is not plain LoRA"),
    ],
)
def test_training_that_is_no_low_rank_update_is_refused(random_vlm, options, message):
    model = trained(VLM.from_pretrained(random_vlm.path), **options)
    with pytest.raises(UsageError, match=message):
        updates_from_peft(model)


def test_a_merged_lora_is_refused(random_vlm):
    model = trained(VLM.from_pretrained(random_vlm.path))
    model.merge_adapter()
    with pytest.raises(UsageError, match="is merged into the base.*Unmerge it first"):
        updates_from_peft(model)


def test_interventions_are_refused_and_leave_nothing(random_vlm, adapter, tmp_path):
    with pytest.raises(UsageError, match="Only weight updates can be written as a PEFT adapter.*Fold it first"):
        write_peft(random_vlm, adapter, tmp_path / "peft")
    with pytest.raises(UsageError, match="this adapter holds none"):
        write_peft(random_vlm, adapter_of(random_vlm.base), tmp_path / "peft")
    assert not list(tmp_path.iterdir())


def test_a_new_value_of_a_weight_is_refused(random_vlm, tmp_path):
    update = WeightUpdate(f"{PROJECTOR}.weight", {"value": torch.zeros(WIDTH, WIDTH)})
    with pytest.raises(UsageError, match=rf"The update of {PROJECTOR} is a new value, not a low-rank change"):
        write_peft(random_vlm, Adapter(adapter_of(random_vlm.base).info, updates=(update,)), tmp_path / "peft")
    norm = WeightUpdate("model.language_model.norm.weight", {"value": torch.ones(WIDTH)})
    with pytest.raises(UsageError, match="is no linear layer's, so it is no LoRA"):
        write_peft(random_vlm, Adapter(adapter_of(random_vlm.base).info, updates=(norm,)), tmp_path / "peft")
