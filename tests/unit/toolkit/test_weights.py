"""Weights that stay in a checkpoint's files are those that transformers would load, however they lie there."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llava import vlm  # noqa: F401
from workshop import safetykit

from safetykit.adapters.artifact.tensors import stored_tensors
from safetykit.adapters.errors import InvalidArtifact, Unread, UsageError
from safetykit.bench.zoo.hub_cache import in_cache
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.model.weights import chunks

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
# As saved: transformers writes the names of before 4.52.
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@pytest.fixture
def folder(vlm, tmp_path):  # noqa: F811
    """A copy of the checkpoint that a test may change."""
    return shutil.copytree(vlm.path, tmp_path / "model")


def require_equal(streamed: VLM, loaded: VLM) -> None:
    """Every parameter and buffer of ``loaded`` has the value it has in ``streamed``."""
    for name, parameter in loaded.model.named_parameters():
        weight = streamed.weights.of(streamed.model.get_parameter(name))
        assert weight.shape == parameter.shape
        assert torch.equal(weight.whole().float(), parameter), name
        assert torch.equal(
            torch.cat([piece.reshape(-1) for piece in chunks(weight, 64)]).float(), parameter.reshape(-1)
        )
    for name, buffer in loaded.model.named_buffers():
        assert torch.equal(streamed.model.get_buffer(name), buffer), name


def shard(folder):
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    weight_map = {}
    for at, (name, tensor) in enumerate(sorted(tensors.items())):
        file = f"part-{at % 3}.safetensors"
        weight_map[name] = file
        held = load_file(folder / file) if (folder / file).exists() else {}
        save_file(held | {name: tensor}, folder / file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def link(folder):
    """As in the cache of the Hugging Face Hub: every file is a link to a blob beside the snapshots."""
    snapshot = in_cache(folder, folder.parent, "org/model")
    shutil.rmtree(folder)
    return snapshot


def rename(folder):
    """The names that the model itself has, instead of the older ones that are saved."""
    new = {}
    for name, tensor in load_file(folder / FILE).items():
        name = name.replace("language_model.model.", "language_model.", 1)
        new["lm_head.weight" if name == HEAD else f"model.{name}"] = tensor
    assert "model.language_model.embed_tokens.weight" in new
    save_file(new, folder / FILE)


def halve(folder):
    save_file({name: tensor.bfloat16() for name, tensor in load_file(folder / FILE).items()}, folder / FILE)


@pytest.mark.parametrize("change", [None, shard, link, rename, halve])
def test_all_values_are_those_of_the_loaded_model(folder, change):
    folder = (change and change(folder)) or folder
    streamed = VLM.without_weights(folder)
    assert not streamed.loaded
    require_equal(streamed, VLM.from_pretrained(folder))


def test_tied_weights_are_one_and_are_parted_where_the_checkpoint_has_two(folder):
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    apart = VLM.without_weights(folder)  # both are there, with other values
    require_equal(apart, VLM.from_pretrained(folder))
    assert apart.parts.head.weight is not apart.parts.embed_tokens.weight
    tensors = load_file(folder / FILE)
    save_file({name: tensor for name, tensor in tensors.items() if name != HEAD}, folder / FILE)
    one = VLM.without_weights(folder)
    assert one.parts.head.weight is one.parts.embed_tokens.weight
    assert torch.equal(one.weights.of(one.parts.head.weight).whole(), tensors[EMBEDDING])
    require_equal(one, VLM.from_pretrained(folder))


def test_a_model_without_weights_can_be_loaded_later(folder):
    empty = VLM.without_weights(folder)
    empty.load()
    head = empty.parts.head.weight
    assert empty.loaded and empty.weights.of(head).whole().data_ptr() == head.data_ptr()
    model = empty.model
    empty.load()
    assert empty.model is model


def without_the_head(tensors):
    del tensors[HEAD]


def under_another_prefix(tensors):
    for name in [name for name in tensors if ".mlp." in name and name.startswith("language_model")]:
        tensors[f"wrapped.{name}"] = tensors.pop(name)


def misshaped(tensors):
    tensors[HEAD] = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_the_head, r"no weights for 1 of its model's tensors: lm_head\.weight\. Get the checkpoint again"),
        (under_another_prefix, r"no weights for 9 of .*: model\.language_model\.layers\.0\.mlp.*, .*, .* and 6 more\."),
        (misshaped, r"lm_head\.weight has shape \(\d+, \d+\) by the configuration and \(2, 2\) in"),
    ],
)
@pytest.mark.parametrize("load", [VLM.without_weights, VLM.from_pretrained])
def test_a_checkpoint_that_lacks_weights_is_refused(folder, load, change, said):
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE, {"format": "pt"})
    with pytest.raises(InvalidArtifact, match=said) as refused:
        load(folder)
    assert refused.value.exit_code == 3


def test_tensors_that_the_model_does_not_have_are_passed_over(folder):
    save_file(load_file(folder / FILE) | {"vision_head.weight": torch.ones(2)}, folder / FILE, {"format": "pt"})
    require_equal(VLM.without_weights(folder), VLM.from_pretrained(folder))


@pytest.mark.parametrize("name", ["../model.safetensors", "missing.safetensors"])
def test_an_index_cannot_name_files_elsewhere(folder, name):
    (folder / FILE).rename(folder.parent / FILE)
    (folder / INDEX).write_text(json.dumps({"weight_map": {HEAD: name}}))
    with pytest.raises(InvalidArtifact, match="names .*, which is no file beside it"):
        VLM.without_weights(folder)


def test_an_index_that_is_not_read_is_said_so(folder):
    (folder / INDEX).write_text(json.dumps({"weight_map": {HEAD: "../other.safetensors"}}))
    with pytest.warns(Unread, match=f"{INDEX} is not read: the weights are those of {FILE}"):
        VLM.without_weights(folder)
    done = safetykit("inspect", folder, "--json")
    assert done.code == 0 and done.err.count("is not read") == 1, done.err


def test_a_folder_without_weights_or_with_a_broken_index_is_refused(folder):
    (folder / FILE).unlink()
    with pytest.raises(UsageError, match="neither model.safetensors nor"):
        VLM.without_weights(folder)
    (folder / INDEX).write_text("[]")
    with pytest.raises(InvalidArtifact, match="no index of weights that can be read"):
        VLM.without_weights(folder)


def test_a_folder_that_holds_no_vision_language_model_is_refused(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UsageError):
        VLM.without_weights(folder)


def test_a_file_that_shrinks_while_it_is_read_is_refused(folder):
    tensor = stored_tensors(folder / FILE)[HEAD]
    with open(folder / FILE, "r+b") as file:
        file.truncate(tensor.start + 4)
    with pytest.raises(InvalidArtifact, match="it ends early"):
        tensor.whole()
    with pytest.raises(InvalidArtifact, match="it ends early"):
        list(tensor.pieces())
