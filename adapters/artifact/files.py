"""Files of an artifact's folder: written whole, read without leaving it, and compared with what its manifest names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InvalidArtifact
from .hub import plain_file

MANIFEST, EXPORT_MANIFEST = "manifest.json", "safetykit.json"  # of adapter and export folders
SIGNATURE = "signature.sigstore.json"  # of a manifest, which therefore cannot name it

# What a checkpoint holds beside its weights: everything a processor, a tokenizer or a reader needs.
CONFIGURATION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_TEMPLATES = "additional_chat_templates"  # a folder of more of them


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file or a folder's list of names to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield another name for a file of a folder that is ours alone; what is written there is flushed and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")  # always the same, so that the next one removes it
    try:
        partial.unlink(missing_ok=True)  # nothing is written through a link that somebody has put there
        yield partial
        flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush(path.parent)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file of a folder that is ours alone, whole or not at all."""
    with appearing(path) as partial:
        partial.write_bytes(data)


def read_inside(folder: Path, name: str, limit: int | None = None) -> bytes:
    """Read the plain file ``name`` of ``folder``; links are refused because they can lead outside.

    Those of the Hugging Face Hub's cache are followed, see :func:`~safetykit.adapters.artifact.hub.plain_file`.

    Args:
        limit: largest size in bytes that is read.

    Raises:
        InvalidArtifact: missing, not a plain file, or larger than ``limit``.
    """
    path = plain_file(folder, name)
    if limit is not None and path.stat().st_size > limit:
        raise InvalidArtifact(
            f"{folder / name} is larger than {limit} bytes.", "It is not what its name says; get it again."
        )
    return path.read_bytes()


def unnamed_files(folder: Path, named: Collection[str]) -> list[str]:
    """Files of a folder and below that are not among ``named`` (with ``/``); hidden ones, which nothing reads, aside.

    A link to a folder counts as a file: what it leads to is not the folder's.
    """
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    names = [name for name in sorted(found) if not any(part.startswith(".") for part in name.parts)]
    return [name.as_posix() for name in names if name.as_posix() not in {*named, SIGNATURE}]


def require_unplanted(folder: Path, named: Collection[str]) -> None:
    """Refuse files that the manifest does not name and that are read all the same, such as a chat template.

    Raises:
        InvalidArtifact: naming every one of them.
    """
    read = [name for name in unnamed_files(folder, named) if name in CONFIGURATION_FILES or name.startswith(_TEMPLATES)]
    if read:
        raise InvalidArtifact(
            f"{folder} holds what its manifest does not name and a model would read: {', '.join(read)}.",
            "Remove it, or get the folder again from its source.",
        )


def require_named(folder: Path, named: Collection[str]) -> None:
    """Refuse a folder with files that its manifest does not name.

    Raises:
        InvalidArtifact: naming every one of them.
    """
    if unknown := unnamed_files(folder, named):
        count = "a file" if len(unknown) == 1 else f"{len(unknown)} files"
        raise InvalidArtifact(
            f"{folder} holds {count} that its manifest does not name: {', '.join(unknown)}.",
            "Move what is yours out of the folder; if it is not, get the folder again from its source.",
        )


def require_hashes(folder: Path, files: dict[str, str]) -> None:
    """Refuse a folder whose files are not byte for byte those that ``files`` names.

    Raises:
        InvalidArtifact: naming the first file that is missing, linked or changed.
    """
    for name, digest in sorted(files.items()):
        if sha256_file(plain_file(folder, name)) != digest:
            raise InvalidArtifact(f"{folder / name} was changed or truncated.", "Get the folder again from its source.")
