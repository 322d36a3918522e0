"""A folder of a LoRA adapter is the checkpoint that PEFT merges it to; what cannot be merged says what is missing."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_llava import vlm  # noqa: F401
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from safetykit import cli
from safetykit.adapters.artifact.fingerprint import fingerprint
from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.bench.zoo.hub_cache import in_cache
from safetykit.export.pipeline.export import export_onnx
from safetykit.toolkit.data.record import Record
from safetykit.toolkit.model.asking import require_answerable
from safetykit.toolkit.model.chat_template import with_chat_template
from safetykit.toolkit.model.peft_folder import CONFIG, WEIGHTS, checkpoint_path
from safetykit.toolkit.model.vlm import VLM

FILE = "model.safetensors"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFETYKIT_CACHE", str(tmp_path / "merged"))


def adapted(vlm, **options):  # noqa: F811
    """The tiny model with random LoRA layers."""
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_pretrained(vlm.path)
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "init_lora_weights": False, **options}
    model = get_peft_model(model, LoraConfig(**options))
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.5)
    return model


@pytest.fixture(scope="module")
def trained(vlm, tmp_path_factory):  # noqa: F811
    """Folders of an adapter on every ``q_proj``, the vision tower's included, and of the model it is merged to."""
    folder = tmp_path_factory.mktemp("peft")
    model = adapted(vlm)
    model.save_pretrained(folder / "alone")
    shutil.copytree(vlm.path, folder / "merged")
    model.merge_and_unload().save_pretrained(folder / "saved")
    shutil.copyfile(folder / "saved" / FILE, folder / "merged" / FILE)
    return folder


@pytest.fixture
def alone(trained, tmp_path):
    """A copy of the adapter's folder that a test may change."""
    return shutil.copytree(trained / "alone", tmp_path / "alone")


def configure(folder, **changes):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def require_merged(folder, trained):
    found, wanted = load_file(folder / FILE), load_file(trained / "merged" / FILE)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_base_that_the_adapter_names_is_merged(alone, trained, vlm):  # noqa: F811
    folder = checkpoint_path(alone)
    require_merged(folder, trained)
    assert folder.name == "alone" and checkpoint_path(alone) == folder  # once
    assert fingerprint(folder) == fingerprint(trained / "merged") != vlm.fingerprint
    assert not (folder / CONFIG).exists()


def test_weights_beside_an_adapter_are_its_base(alone, trained, vlm):  # noqa: F811
    shutil.copytree(vlm.path, alone, dirs_exist_ok=True)
    require_merged(checkpoint_path(alone), trained)


def test_a_base_in_the_hubs_cache_is_found_by_its_id(alone, trained, vlm, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    configure(alone, base_model_name_or_path="org/model")
    with pytest.raises(
        UsageError, match=r"its base org/model is not here\. Pass it: --base .* `hf download org/model`"
    ):
        checkpoint_path(alone)
    in_cache(vlm.path, tmp_path / "cache", "org/model")
    require_merged(checkpoint_path(alone), trained)


def test_weights_of_half_precision_are_rounded_once(alone, trained, vlm, tmp_path):  # noqa: F811
    base = shutil.copytree(vlm.path, tmp_path / "half")
    save_file({name: value.bfloat16() for name, value in load_file(base / FILE).items()}, base / FILE)
    found, wanted = load_file(checkpoint_path(alone, base) / FILE), load_file(trained / "merged" / FILE)
    for name, value in wanted.items():
        assert found[name].dtype == torch.bfloat16
        assert torch.allclose(found[name].float(), value, rtol=2**-7, atol=2**-9), name


def test_an_adapter_that_changes_is_merged_again(alone):
    first = checkpoint_path(alone)
    configure(alone, lora_alpha=4)
    assert checkpoint_path(alone) != first


def test_files_of_the_adapters_own_win(alone):
    (alone / "chat_template.jinja").write_text("trained with another one")
    assert (checkpoint_path(alone) / "chat_template.jinja").read_text() == "trained with another one"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda f: configure(f, base_model_name_or_path=None), UsageError, "no model, and does not name its base"),
        (lambda f: configure(f, base_model_name_or_path="/gone"), UsageError, "its base /gone is not here. Pass it"),
        (lambda f: configure(f, peft_type="IA3"), UsageError, "of type IA3, not LoRA"),
        (lambda f: configure(f, use_dora=True), UsageError, "cannot be merged"),
        (lambda f: (f / WEIGHTS).unlink(), InvalidArtifact, "and no adapter_model.safetensors"),
        (lambda f: (f / CONFIG).write_text("[]"), InvalidArtifact, "no PEFT configuration"),
        (
            lambda f: save_file(dict(list(load_file(f / WEIGHTS).items())[2:]), f / WEIGHTS),
            UsageError,
            "no values for .*lora_A.* trained on another model",
        ),
        (
            lambda f: save_file(
                load_file(f / WEIGHTS) | {"base_model.model.x.lora_A.weight": torch.ones(1)}, f / WEIGHTS
            ),
            UsageError,
            "This base has no place for its base_model.model.x",
        ),
    ],
)
def test_what_cannot_be_merged_is_refused(alone, change, error, message):
    change(alone)
    with pytest.raises(error, match=message):
        checkpoint_path(alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": "all"}, "own biases were trained"),
        ({"modules_to_save": ["lm_head"]}, "lm_head was trained as a whole"),
        ({"target_modules": ["embed_tokens"]}, "is not plain LoRA on a linear layer"),
    ],
)
def test_adapters_that_are_more_than_lora_are_refused(vlm, tmp_path, options, message):  # noqa: F811
    adapted(vlm, **options).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UsageError, match=f"cannot be merged into .*{message}.* merge_and_unload"):
        checkpoint_path(tmp_path / "adapter")


@pytest.mark.slow
def test_an_export_of_the_adapter_equals_the_merged_model(alone, trained, tmp_path):
    done = export_onnx(alone, [], tmp_path / "out")  # parity is against the folder as it loads
    assert done.parity.passed and done.manifest.base.fingerprint == fingerprint(trained / "merged")
    assert VLM.from_pretrained(alone).fingerprint == done.manifest.base.fingerprint


def test_conversations_are_tried_with_the_template_of_the_base(alone):
    system, asks = {"role": "system", "content": "x"}, {"role": "user", "content": "y"}
    record = Record(id="a", label="harmful", split="fit", messages=[system, asks])
    require_answerable(alone, [record])
    template = "{% for m in messages if m.role == 'user' %}{{ m.content[0].text }}{% endfor %}"
    with pytest.raises(UsageError, match="Record a: .*no place for a system turn"):
        require_answerable(with_chat_template(checkpoint_path(alone), template), [record])


def test_the_command_line_takes_the_base(alone, vlm):  # noqa: F811
    configure(alone, base_model_name_or_path="gone")

    def run(*words):
        return CliRunner().invoke(cli.application(), [str(word) for word in words])

    assert "--base CHECKPOINT" in str(run("inspect", alone).exception)
    done = run("inspect", alone, "--base", vlm.path, "--json")
    assert json.loads(done.stdout)["n_layers"] == 3
    assert "is no PEFT adapter" in str(run("inspect", vlm.path, "--base", vlm.path).exception)
    assert "is a PEFT adapter itself" in str(run("inspect", alone, "--base", alone).exception)
    assert "without a PEFT adapter as --model" in str(run("verify", vlm.path, "--base", vlm.path).exception)
