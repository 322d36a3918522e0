"""A checkpoint whose JSON files hold other types than they should ends in one readable error."""

import json
import shutil

import pytest
from PIL import Image

from safetykit.adapters.artifact.fingerprint import fingerprint
from safetykit.adapters.errors import InvalidArtifact, SafetykitError
from safetykit.toolkit.model.inputs import InputProcessor
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.reference import reference_path

PICTURE = Image.new("RGB", (64, 64))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """The files of the reference VLM without its weights."""
    folder = tmp_path_factory.mktemp("settings") / "mild"
    return shutil.copytree(reference_path("mild"), folder, ignore=shutil.ignore_patterns("*.safetensors"))


# Each raised an error of another library, or took gigabytes.
CORPUS = [
    ("config.json", (), 7),
    ("config.json", ("text_config",), "x"),
    ("config.json", ("model_type",), ["llava"]),
    ("tokenizer_config.json", (), []),
    ("tokenizer_config.json", ("added_tokens_decoder",), 7),
    ("processor_config.json", (), None),
    ("processor_config.json", ("num_additional_image_tokens",), None),
    ("processor_config.json", ("num_additional_image_tokens",), 2**70),
    ("processor_config.json", ("num_additional_image_tokens",), 2**31),
    ("processor_config.json", ("image_processor", "rescale_factor"), "x"),
    ("processor_config.json", ("image_processor", "size"), {"height": 10**9, "width": 10**9}),
    ("processor_config.json", ("image_processor", "size"), 7.5),
    ("generation_config.json", (), "x"),
    ("generation_config.json", ("eos_token_id",), {"a": 1}),
    ("generation_config.json", ("bos_token_id",), "/"),
    ("generation_config.json", ("output_hidden_states",), [None]),
    ("generation_config.json", ("output_attentions",), "/"),
    ("generation_config.json", ("bos_token_id",), -(2**64)),
    ("generation_config.json", ("eos_token_id",), [3, 2**70]),
    ("config.json", ("text_config", "num_hidden_layers"), 10**40),
    ("config.json", ("vision_config", "num_hidden_layers"), 5000),
    ("tokenizer.json", ("model", "vocab", "dolphin"), 2**31),
    ("tokenizer.json", ("added_tokens", 0, "id"), 2**31),
    ("tokenizer.json", (), {}),
    ("tokenizer.json", ("model", "vocab"), {}),
    ("tokenizer.json", ("added_tokens",), 7),
]


def test_json_that_is_nested_too_deeply_has_no_fingerprint(settings, tmp_path):
    folder = shutil.copytree(settings, tmp_path / "deep")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert len(fingerprint(folder)) == 64
    (folder / "generation_config.json").write_bytes(b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(InvalidArtifact, match="generation_config.json is not JSON"):
        fingerprint(folder)


def test_a_configuration_with_more_layers_than_tensors_builds_no_model(tmp_path):
    folder = shutil.copytree(reference_path("mild"), tmp_path / "deep")
    body = json.loads((folder / "config.json").read_text())
    body["text_config"]["num_hidden_layers"] = 2000
    (folder / "config.json").write_text(json.dumps(body))
    for load in (VLM.from_pretrained, VLM.without_weights):
        with pytest.raises(SafetykitError, match="num_hidden_layers is 2000; at most"):
            load(folder)


@pytest.mark.parametrize(("name", "path", "value"), CORPUS, ids=lambda one: str(one)[:40])
def test_settings_of_wrong_types_end_in_one_error(settings, name, path, value):
    whole = (settings / name).read_bytes()
    body = json.loads(whole)
    owner = body
    for key in path[:-1]:
        owner = owner[key]
    if path:
        owner[path[-1]] = value
    (settings / name).write_text(json.dumps(body if path else value))
    try:
        with pytest.raises(SafetykitError) as caught:
            InputProcessor.from_pretrained(settings).prepare([Request("what is <pad> this ?", PICTURE)])
        assert caught.value.message and caught.value.next_step
    finally:
        (settings / name).write_bytes(whole)
