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

from ..errors import InvalidArtifact
from .files import CONFIGURATION_FILES, EXPORT_MANIFEST, read_inside
from .manifest import Sha256, load_sealed

_LIMIT = 2**27  # bytes of a file
_CODE = "auto_map"  # a key: which class of which module of the folder, or of another repository, is to be imported
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
