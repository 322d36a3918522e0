"""An adapter belongs to one base: what is another model is refused, what is the same one elsewhere is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from safetykit.adapters.artifact.fingerprint import fingerprint
from safetykit.adapters.artifact.store import require_base
from safetykit.adapters.errors import InvalidArtifact, UsageError, WrongBase
from safetykit.toolkit.model.vlm import VLM

from .row import Figure, Place, Row, Tally

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_HEADER = {"format": "pt"}
Tensors = dict[str, torch.Tensor]
Change = Callable[[Path], None]


def weights(change: Callable[[Tensors], object]) -> Change:
    """A change of the stored tensors."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS, _HEADER)

    return apply


def document(name: str, change: Callable[[dict], object]) -> Change:
    """A change of a JSON file."""

    def apply(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        change(value)
        (folder / name).write_text(json.dumps(value))

    return apply


def _layer(at: int, part: str = "mlp.down_proj") -> str:
    return f"layers.{at}.{part}.weight"


def _named(tensors: Tensors, end: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(end) and "vision" not in name)


def _one_weight(tensors: Tensors) -> None:
    name = _named(tensors, _layer(0))
    tensors[name].view(-1)[0] = torch.nextafter(tensors[name].view(-1)[0], torch.tensor(9.0))


def _swap_layers(tensors: Tensors) -> None:
    one, other = _named(tensors, _layer(1)), _named(tensors, _layer(2))
    tensors[one], tensors[other] = tensors[other].clone(), tensors[one].clone()


def _sibling(tensors: Tensors) -> None:
    torch.manual_seed(0)
    for name, tensor in tensors.items():
        tensors[name] = tensor + 1e-3 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor


def _cast(tensors: Tensors) -> None:
    tensors |= {name: tensor.bfloat16() for name, tensor in tensors.items()}


def _sharded(folder: Path, place: Callable[[str], str] = lambda shard: shard) -> None:
    """In two files, which the index says lie at ``place``."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names, where = sorted(tensors), {}
    for at, shard in enumerate(("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")):
        mine = names[at::2]
        path = folder / place(shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensors[name] for name in mine}, path, _HEADER)
        where |= dict.fromkeys(mine, place(shard))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _redirected(target: Callable[[Path], Path]) -> Change:
    """The honest file stays, and an index leads the loader to a poisoned one beside, above or anywhere."""

    def apply(folder: Path) -> None:
        poisoned = target(folder)
        poisoned.parent.mkdir(parents=True, exist_ok=True)
        tensors = load_file(folder / WEIGHTS)
        _sibling(tensors)
        save_file(tensors, poisoned, _HEADER)
        (folder / WEIGHTS).rename(folder / "weights.safetensors")
        inside = poisoned.is_relative_to(folder)
        named = str(poisoned.relative_to(folder)) if inside else str(poisoned)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, named)}))

    return apply


def _climbing(folder: Path) -> None:
    _redirected(lambda folder: folder.parent / "beside" / "m.safetensors")(folder)
    index = (folder / INDEX).read_text()
    (folder / INDEX).write_text(index.replace(str(folder.parent / "beside"), "../beside"))


def _reordered(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(
        {name: tensors[name] for name in sorted(tensors, reverse=True)}, folder / WEIGHTS, {"format": "pt", "by": "x"}
    )


OTHERS: Mapping[str, Change] = {
    "one weight by one step": weights(_one_weight),
    "two layers' weights exchanged": weights(_swap_layers),
    "a sibling's weights": weights(_sibling),
    "cast to bfloat16": weights(_cast),
    "another word in the tokenizer": document("tokenizer.json", lambda v: v["model"]["vocab"].update({"zzz": 5})),
    "another chat template": lambda f: (f / "chat_template.jinja").write_text("{{ messages[0]['content'] }}") and None,
    "another scale of the picture": document("processor_config.json", lambda v: v.update({"patch_size": 6})),
    "other rotary positions": document("config.json", lambda v: v["text_config"].update({"rms_norm_eps": 1e-3})),
    "another end of an answer": document("generation_config.json", lambda v: v.update({"eos_token_id": 7})),
    "an index that leads into a folder": _redirected(lambda folder: folder / "sub" / "m.safetensors"),
    "an index that leads to an absolute path": _redirected(lambda folder: folder.parent / "away" / "m.safetensors"),
    "an index that climbs": _climbing,
}
SAME: Mapping[str, Change] = {
    "moved": lambda folder: None,
    "in two shards": _sharded,
    "its weights in another header": _reordered,
    "with a README": lambda folder: (folder / "README.md").write_text("A model.") and None,
    "its configuration by another version": document("config.json", lambda v: v.update({"transformers_version": "9"})),
}


def bound(place: Place) -> Figure:
    """The adapter meets changed copies of its base."""
    tally, adapter = Tally(), place.adapter

    def meet(folder: Path) -> None:
        require_base(adapter, fingerprint(folder), "the model")
        with adapter.applied(VLM.from_pretrained(folder)):
            pass

    tally.accepted("as it was", lambda: meet(place.model))
    for cases, same in ((OTHERS, False), (SAME, True)):
        for name, change in cases.items():
            with place.scratch("base") as work:
                folder = shutil.copytree(place.model, work / "model")
                change(folder)
                if same:
                    tally.accepted(name, partial(meet, folder))
                else:
                    tally.refused(name, partial(meet, folder), (WrongBase, InvalidArtifact, UsageError))
    return tally.figure("as promised", {"others": len(OTHERS), "same": 1 + len(SAME)})


ROWS = (
    Row(
        "bases",
        "bound to its base",
        f"{len(OTHERS)} other models refused; the same one, moved or re-sharded, accepted ({1 + len(SAME)} cases)",
        bound,
    ),
)
