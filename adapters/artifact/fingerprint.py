"""The base fingerprint: one SHA-256 that says which model an adapter belongs to.

It covers every weight (name, dtype, shape, bytes), the configuration, the tokenizer, the processor
and the chat template, because a changed template moves the last prompt position as surely as a
changed weight. It does not depend on how the weights are split into files or where the folder lies.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidArtifact
from .checkpoint import checkpoint_tensors
from .configuration import configuration

# Keys that change when a checkpoint is saved again by another version, without changing the model.
_VOLATILE = {"_name_or_path", "name_or_path", "transformers_version", "tokenizer_file", "is_local", "local_files_only"}


def fingerprint(folder: Path | str) -> str:
    """Hex SHA-256 of a checkpoint folder: of what is loaded from it, wherever its index or its links lead.

    Raises:
        UsageError: not a folder, or it holds no safetensors weights.
        InvalidArtifact: a weights file is damaged, or something else would be loaded, see :mod:`.checkpoint`.
    """
    folder = Path(folder)
    digest = hashlib.sha256()
    for name, value in sorted(_weights(folder)):
        digest.update(f"{name}\0{value}\n".encode())
    for name, data in configuration(folder).items():
        digest.update(f"{name}\0{_text_digest(folder / name, data)}\n".encode())
    return digest.hexdigest()


def _weights(folder: Path) -> Iterator[tuple[str, str]]:
    for name, tensor in checkpoint_tensors(folder).items():
        digest = hashlib.sha256()
        for piece in tensor.pieces():
            digest.update(piece)
        yield name, f"{tensor.dtype}\0{tensor.shape}\0{digest.hexdigest()}"


def _lasting(value: Any, *, nested: bool) -> Any:
    """JSON without volatile keys; with ``nested`` also in the objects inside of it."""
    if not isinstance(value, dict):
        return value
    kept = {key: item for key, item in value.items() if key not in _VOLATILE}
    return {key: _lasting(item, nested=True) for key, item in kept.items()} if nested else kept


def _text_digest(path: Path, data: bytes) -> str:
    if path.suffix == ".json":
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            raise InvalidArtifact(f"{path} is not JSON.", "Get the checkpoint again.") from None
        # The configurations of parts remember where those came from; a vocabulary may hold any word.
        data = json.dumps(_lasting(value, nested=path.name == "config.json"), sort_keys=True).encode()
    return hashlib.sha256(data).hexdigest()
