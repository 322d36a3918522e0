"""The weights of a checkpoint folder: the files that transformers would load, and no others.

transformers chooses them by what lies in the folder and by what its configuration says. Here the choice is made once:
what the fingerprint covers is what is loaded, and a folder that would have something else loaded is refused.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

from ..errors import InvalidArtifact, Unread, UsageError
from .configuration import json_object
from .hub import plain_file
from .tensors import StoredTensor, stored_tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

_NAME = re.compile(r"[^/\\:]+\.safetensors")
# Of files that transformers (5.23, distributed/checkpoint.py) takes before all others.
_SHARDS = "shard-[0-9][0-9][0-9][0-9][0-9]-model-*.safetensors"
_REDIRECTING = "transformers_weights"  # a key of config.json: the weights' file


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files from which a checkpoint's weights are loaded: one, or those of its index.

    Raises:
        UsageError: there are none.
        InvalidArtifact: one is missing or lies outside the folder, the index cannot be read, or transformers would load
            others.
    """
    if others := sorted(path.name for path in folder.glob(_SHARDS)):
        raise InvalidArtifact(
            f"{folder} holds {others[0]}, which would be loaded in the place of its weights.",
            "Remove it, or save the model again with save_pretrained.",
        )
    if json_object(folder, "config.json").get(_REDIRECTING) is not None:
        raise InvalidArtifact(
            f"{folder / 'config.json'} names another file of weights ({_REDIRECTING}).",
            f"Remove the key; weights are read from {WEIGHTS}, or from the files of {INDEX}.",
        )
    whole = os.path.lexists(folder / WEIGHTS)
    if whole and os.path.lexists(folder / INDEX):
        warnings.warn(f"{folder / INDEX} is not read: the weights are those of {WEIGHTS} beside it.", Unread, 2)
    names = [WEIGHTS] if whole else _indexed(folder)
    for name in names:
        plain_file(folder, name)
    return tuple(folder / name for name in names)


def _indexed(folder: Path) -> list[str]:
    if not os.path.lexists(folder / INDEX):
        raise UsageError(
            f"{folder} holds neither {WEIGHTS} nor {INDEX}.",
            "Pass a checkpoint folder; convert pickled weights with transformers' save_pretrained first.",
        )
    named = json_object(folder, INDEX).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise InvalidArtifact(
            f"{folder / INDEX} is no index of weights that can be read.", "Save the model again with save_pretrained."
        )
    names = sorted(set(named.values()))
    for name in names:
        if not _NAME.fullmatch(name) or not os.path.lexists(folder / name):
            raise InvalidArtifact(
                f"The index of weights in {folder} names {name!r}, which is no file beside it.",
                "Get the checkpoint again, or save the model again with save_pretrained.",
            )
    return names


def checkpoint_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors that are loaded from a checkpoint, by name.

    Raises:
        UsageError, InvalidArtifact: as :func:`weight_files`; or a file is damaged, or two hold the same tensor.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        held = stored_tensors(path)
        if twice := sorted(held.keys() & found.keys()):
            raise InvalidArtifact(
                f"{path.name} and {found[twice[0]].path.name} in {folder} both hold {twice[0]}.",
                "Save the model again with save_pretrained.",
            )
        found |= held
    return found
