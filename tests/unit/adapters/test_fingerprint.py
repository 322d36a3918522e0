"""The fingerprint changes with the model and with nothing else."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from safetykit.adapters import InvalidArtifact, UsageError
from safetykit.adapters.artifact.fingerprint import fingerprint

WEIGHTS = {"b.weight": torch.arange(6.0).reshape(2, 3), "a.weight": torch.ones(4)}


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(WEIGHTS, folder / "model.safetensors")
    config = {"model_type": "x", "transformers_version": "1", "n": 3, "text_config": {"_name_or_path": "/here", "n": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text('{"vocab": {"a": 1}}')
    (folder / "chat_template.jinja").write_text("USER: {{ prompt }}")
    return folder


def reshard(folder):
    (folder / "model.safetensors").unlink()
    save_file({"a.weight": WEIGHTS["a.weight"]}, folder / "model-1.safetensors")
    save_file({"b.weight": WEIGHTS["b.weight"]}, folder / "model-2.safetensors")
    index(folder, {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"})


def index(folder, weight_map):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def rewrite(folder, **changes):
    save_file({**WEIGHTS, **changes}, folder / "model.safetensors")


def swap(folder):
    save_file({"a.weight": WEIGHTS["b.weight"], "b.weight": WEIGHTS["a.weight"]}, folder / "model.safetensors")


def edit(name, text):
    return lambda folder: (folder / name).write_text(text)


SAME = {
    "resharded": reshard,
    "saved by another version": edit(
        "config.json", '{"n": 3, "model_type": "x", "transformers_version": "9", "text_config": {"n": 1}}'
    ),
    "assembled from a part that lay elsewhere": edit(
        "config.json", '{"n": 3, "model_type": "x", "text_config": {"_name_or_path": "/there", "n": 1}}'
    ),
    "a README beside it": edit("README.md", "hello"),
    "weights beside it that are not loaded": lambda f: save_file({"z": torch.ones(1)}, f / "consolidated.safetensors"),
}
OTHER = {
    "one weight": lambda f: rewrite(f, **{"a.weight": torch.tensor([1.0, 1, 1, 1.0000001])}),
    "swapped tensors": swap,
    "another dtype": lambda f: rewrite(f, **{"a.weight": torch.ones(4, dtype=torch.float16)}),
    "another shape": lambda f: rewrite(f, **{"a.weight": torch.ones(2, 2)}),
    "one tensor more": lambda f: rewrite(f, **{"c.weight": torch.ones(1)}),
    "the configuration": edit("config.json", '{"n": 4, "model_type": "x", "text_config": {"n": 1}}'),
    "the configuration of a part": edit("config.json", '{"n": 3, "model_type": "x", "text_config": {"n": 2}}'),
    "the tokenizer": edit("tokenizer.json", '{"vocab": {"a": 2}}'),
    "a word that is called like a volatile key": edit("tokenizer.json", '{"vocab": {"a": 1, "is_local": 2}}'),
    "the chat template": edit("chat_template.jinja", "HUMAN: {{ prompt }}"),
    "a processor": edit("processor_config.json", "{}"),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_model_keeps_its_fingerprint(checkpoint, name, tmp_path):
    before = fingerprint(checkpoint)
    SAME[name](checkpoint)
    assert fingerprint(checkpoint) == before
    moved = tmp_path / "elsewhere"
    shutil.move(checkpoint, moved)
    assert fingerprint(moved) == before


@pytest.mark.parametrize("name", OTHER)
def test_another_model_gets_another_fingerprint(checkpoint, name):
    before = fingerprint(checkpoint)
    OTHER[name](checkpoint)
    assert fingerprint(checkpoint) != before


def test_a_folder_without_safetensors_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds neither model.safetensors nor .*save_pretrained"):
        fingerprint(tmp_path)


def test_a_truncated_weights_file_is_named(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(InvalidArtifact, match="model.safetensors is not a whole safetensors file"):
        fingerprint(checkpoint)


def redirected(folder, name):
    """Weights that are not the folder's own, under a name that only its index says."""
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(folder / "honest.safetensors")
    save_file({key: value + 1 for key, value in WEIGHTS.items()}, place)
    index(folder, dict.fromkeys(WEIGHTS, name))


def linked(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to("../elsewhere")


def twice(folder):
    reshard(folder)
    save_file(WEIGHTS, folder / "model-2.safetensors")


ELSEWHERE = {
    "a folder below": (lambda f: redirected(f, "sub/m.safetensors"), "names 'sub/m.safetensors'"),
    "the folder above": (lambda f: redirected(f, "../m.safetensors"), r"names '\.\./m.safetensors'"),
    "another drive": (lambda f: redirected(f, "C:m.safetensors"), "names 'C:m.safetensors'"),
    "another place": (lambda f: redirected(f, str(f.parent / "m.safetensors")), "names '/"),
    "no weights": (lambda f: redirected(f, "m.bin"), "names 'm.bin'"),
    "a link": (linked, "model.safetensors is a link"),
    "a file that the configuration names": (
        edit("config.json", '{"model_type": "x", "transformers_weights": "other.safetensors"}'),
        "transformers_weights",
    ),
    "files that transformers takes first": (
        lambda f: save_file(WEIGHTS, f / "shard-00000-model-00001-of-00001.safetensors"),
        "shard-00000-model-00001-of-00001.safetensors, which would be loaded",
    ),
    "a tensor twice": (twice, "both hold a.weight"),
    "an index of nothing": (lambda f: (reshard(f), index(f, {})), "no index of weights that can be read"),
    "an index of numbers": (lambda f: (reshard(f), index(f, {"a.weight": 7})), "no index of weights"),
    "a broken index": (
        lambda f: (reshard(f), edit("model.safetensors.index.json", "{")(f)),
        "no index of weights that can be read",
    ),
    "a linked template": (
        lambda f: (edit("../elsewhere", "x")(f), (f / "chat_template.json").symlink_to("../elsewhere")),
        "chat_template.json is a link",
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_checkpoint_that_would_load_something_else_is_refused(checkpoint, name):
    change, words = ELSEWHERE[name]
    change(checkpoint)
    with pytest.raises(InvalidArtifact, match=words):
        fingerprint(checkpoint)


def test_what_an_index_names_is_what_is_hashed(checkpoint):
    """Also where the honest weights still lie beside it."""
    before = fingerprint(checkpoint)
    redirected(checkpoint, "m.safetensors")
    assert fingerprint(checkpoint) != before
