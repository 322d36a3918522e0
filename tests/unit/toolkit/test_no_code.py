"""No folder gets its code run, by whichever door it comes in; and nobody is asked."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from tiny_llava import vlm  # noqa: F401
from workshop import safetykit as command

import safetykit
from safetykit.adapters.errors import InvalidArtifact
from safetykit.bench.zoo.hub_cache import in_cache
from safetykit.toolkit.model.inputs import InputProcessor
from safetykit.toolkit.model.pretrained import tokenizer_of
from safetykit.toolkit.model.shape import decoder_shape
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.model.weights import empty_model
from safetykit.toolkit.retrieval.embedders import EncoderEmbedder

CONFIGS = {
    "config.json": ("AutoConfig", "AutoModelForImageTextToText"),
    "processor_config.json": ("AutoProcessor",),
    "preprocessor_config.json": ("AutoImageProcessor",),
    "video_preprocessor_config.json": ("AutoVideoProcessor",),
    "tokenizer_config.json": ("AutoTokenizer",),
    "generation_config.json": ("AutoModel",),
    "adapter_config.json": ("AutoModel",),
}


@pytest.fixture
def folder(vlm, tmp_path, monkeypatch):  # noqa: F811
    """A copy of a checkpoint with a module whose import would be seen, and a user who says yes to everything."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    copied = shutil.copytree(vlm.path, tmp_path / "model")
    (copied / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass P: pass\n")
    yield copied
    assert not (tmp_path / "ran").exists()


def plant(folder: Path, name: str, change: dict) -> None:
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | change))


DOORS = {
    "processor": InputProcessor.from_pretrained,
    "weights on disk": VLM.without_weights,
    "tokenizer": tokenizer_of,
    "text encoder": lambda path: (plant(path, "config.json", {"model_type": "clip"}), EncoderEmbedder(path)),
    "depth and width": decoder_shape,
    "fingerprint": lambda path: command("inspect", path).err and InputProcessor.from_pretrained(path),
    "base of a LoRA adapter": empty_model,
    "snapshot": lambda path: InputProcessor.from_pretrained(in_cache(path, path.parent / "cache", "org/model")),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_an_auto_map_in_any_configuration_is_refused_by_name(folder, name):
    plant(folder, name, {"auto_map": dict.fromkeys(CONFIGS[name], "evil.P")})
    with pytest.raises(InvalidArtifact, match=rf"{name} asks to run code of the checkpoint \(auto_map: .*evil\.P"):
        InputProcessor.from_pretrained(folder)
    if name != "adapter_config.json":  # with which it is no checkpoint, but a LoRA adapter on one
        done = command("inspect", folder)
        assert done.code == 3 and name in done.err and "auto_map" in done.err


@pytest.mark.parametrize("door", DOORS)
def test_every_door_is_closed(folder, door):
    plant(folder, "config.json", {"text_config": {"auto_map": {"AutoConfig": "other/repository--evil.P"}}})
    with pytest.raises(InvalidArtifact, match="config.json asks to run code"):
        DOORS[door](folder)


@pytest.mark.parametrize(
    "change",
    [
        {"attn_implementation": "someone/kernel"},
        {"text_config": {"_attn_implementation": "someone/kernel@main"}},
        {"attn_implementation": {"text_config": "someone/kernel"}},
        {"experts_implementation": "someone/kernel"},
    ],
)
def test_compiled_code_from_the_hub_is_refused_too(folder, change):
    plant(folder, "config.json", change)
    with pytest.raises(InvalidArtifact, match="asks to run code"):
        VLM.without_weights(folder)


def test_what_asks_for_nothing_is_no_code(folder):
    plant(folder, "config.json", {"auto_map": {}, "attn_implementation": "eager"})
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["auto_map"] = len(tokenizer["model"]["vocab"])  # as a word may be called
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert InputProcessor.from_pretrained(folder).tokens_of("what is this ?")


def test_transformers_reads_folders_in_one_place_and_never_with_their_code():
    root = Path(safetykit.__file__).parent
    rooms = [path for room in ("adapters", "toolkit", "export") for path in (root / room).rglob("*.py")]
    loads = re.compile(r"\b(Auto\w+|GenerationConfig|kind|\w*ForImageTextToText)\.from_pretrained\((?!\.\.\.)")
    found = {path.relative_to(root).as_posix(): path.read_text() for path in rooms if loads.search(path.read_text())}
    rooms_own = "toolkit/reference/measure.py"  # which trained what it reads
    assert set(found) == {"toolkit/model/pretrained.py", "toolkit/model/processors.py", rooms_own}
    calls = [line for text in found.values() for line in text.splitlines() if loads.search(line)]
    assert all(re.search(r"\*\*_?OFFLINE|\*\*options|GenerationConfig", line) for line in calls)
