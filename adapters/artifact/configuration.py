"""What is read of a checkpoint or an export beside weights and graphs: known files, by name, and never code.

transformers reads whatever lies in a folder, and imports modules that a configuration names. So its processors and
tokenizers are given a copy that holds these files only: of an export, byte for byte what its manifest names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from ..errors import InvalidArtifact
from .files import CONFIGURATION_FILES, EXPORT_MANIFEST, read_inside
from .manifest import Sha256, load_sealed

_LIMIT = 2**27  # bytes of a file
_CODE = "auto_map"  # a key: which class of which module of the folder, or of another repository, is to be imported
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_DEPTHS = frozenset(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth"))
_FEW, _LAYERS = 256, 4096  # layers that are not asked about, and more than any model has
_TOKENS = 2**24  # more than any vocabulary has
_KERNEL = re.compile(r"_?(attn|experts)_implementation\w*")  # keys whose value may be a repository of compiled code


class _Sealed(BaseModel):
    """What is needed here of an export's manifest."""

    files: dict[str, Sha256]


def configuration(folder: Path, names: Collection[str] = CONFIGURATION_FILES) -> dict[str, bytes]:
    """The files of a checkpoint beside its weights that are read, by name; of an export those that its manifest names.

    Args:
        names: which of them.

    Raises:
        InvalidArtifact: one is a link that leads elsewhere, is too large, is not what the manifest says, or asks to run
            code.
    """
    sealed = _sealed(folder)
    found = {}
    for name in names:
        if name in sealed if sealed is not None else os.path.lexists(folder / name):
            found[name] = read_inside(folder, name, _LIMIT)
            if sealed is not None and hashlib.sha256(found[name]).hexdigest() != sealed[name]:
                raise InvalidArtifact(
                    f"{folder / name} was changed or truncated.", "Get the folder again from its source."
                )
    require_no_code(folder)
    if _TOKENIZER in found:
        require_small_vocabulary(folder)
    return found


def require_no_code(folder: Path) -> None:
    """Refuse a folder whose configuration asks for code, of its own or from the Hub: it is never run, nobody is asked.

    Raises:
        InvalidArtifact: naming the file and what it asks for.
    """
    for path in sorted(folder.glob("*config.json")):
        for key, value in _items(json_object(folder, path.name)):
            if key == _CODE or (_KERNEL.fullmatch(key) and "/" in str(value)):
                raise InvalidArtifact(
                    f"{path} asks to run code of the checkpoint ({key}: {json.dumps(value)[:200]}).",
                    "Nothing here runs it: pass a checkpoint of an architecture that transformers has (often published "
                    "with the ending -hf), or remove the key if transformers has this one.",
                )


def require_sane_depth(folder: Path) -> None:
    """Refuse a configuration whose number of layers no weights can have: libraries make lists of that length.

    Raises:
        InvalidArtifact: naming the key; more than 4096, or than the tensors of the weights that lie beside it.
    """
    keys = [(key, value) for key, value in _items(json_object(folder, _CONFIG)) if key in _DEPTHS]
    deep = [(key, value) for key, value in keys if isinstance(value, int) and value > _FEW]
    if not deep:
        return
    most = min(_LAYERS, _tensors_beside(folder))
    for key, value in deep:
        if value > most:
            raise InvalidArtifact(
                f"{folder / _CONFIG} says {key} is {str(value)[:24]}; at most {most} can be.",
                "Get the file again from its source.",
            )


def _tensors_beside(folder: Path) -> int:
    """Tensors of the folder's weights as their files' headers say; no limit where none can be read."""
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                count += len(file.keys())
        except (SafetensorError, OSError):  # which whoever reads the weights will say
            return _LAYERS
    return count or _LAYERS


def require_small_vocabulary(folder: Path) -> None:
    """Refuse a tokenizer one of whose numbers of tokens is so large that a table of all takes gigabytes.

    Raises:
        InvalidArtifact: naming the token.
    """
    body = json_object(folder, _TOKENIZER)
    model = body.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    added = body.get("added_tokens")
    pairs: list[tuple[Any, Any]] = list(words.items()) if isinstance(words, dict) else []
    for one in added if isinstance(added, list) else ():
        pairs += [(one.get("content"), one.get("id"))] if isinstance(one, dict) else []
    for word, number in pairs:
        if isinstance(number, int) and number >= _TOKENS:
            raise InvalidArtifact(
                f"{folder / _TOKENIZER} gives {word!r:.40} the number {str(number)[:24]}; tokens have numbers below "
                f"{_TOKENS}.",
                "Get the file again from its source.",
            )


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Keys with values that are not empty, at every depth."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield from ((key, item) for key, item in one.items() if item)
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _sealed(folder: Path) -> dict[str, str] | None:
    """What an export's manifest names, with digests; None for another folder."""
    if not os.path.lexists(folder / EXPORT_MANIFEST):
        return None
    where = str(folder / EXPORT_MANIFEST)
    return load_sealed(_Sealed, read_inside(folder, EXPORT_MANIFEST, _LIMIT), where).files


def json_object(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object; empty where there is none, which whoever needs it will say."""
    try:
        found = json.loads(read_inside(folder, name, _LIMIT)) if os.path.lexists(folder / name) else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
