"""Writing so that nothing half-written is ever found under a final name."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InvalidArtifact, UsageError

MANIFEST = "manifest.json"  # of an adapter folder

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


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` under a temporary name, flush it to disk and rename it to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes files private; an artifact is as readable as any other file
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _flush(path.parent)


def require_free(target: Path, *, overwrite: bool = False) -> None:
    """Refuse an output folder that is taken; worth calling before long work.

    Raises:
        UsageError: ``target`` is a file, or a folder with content and ``overwrite`` is off.
    """
    if target.is_file():
        raise UsageError(f"{target} is a file, not a folder.", "Choose another output folder.")
    if target.exists() and any(target.iterdir()) and not overwrite:
        raise UsageError(f"{target} already exists and is not empty.", "Choose another folder or pass --overwrite.")


@contextmanager
def atomic_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` only when the block ends without an error.

    On any error the folder is removed and ``target`` stays as it was.

    Raises:
        UsageError: ``target`` exists and ``overwrite`` is off, or is a file.
    """
    target = Path(target)
    require_free(target, overwrite=overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    # resolve(): the temporary folder must lie on the same file system as the target, also through links
    parent = target.parent.resolve()
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=parent))
    try:
        yield work
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(work, 0o777 & ~umask)
        for path in work.rglob("*"):
            if path.is_file():
                _flush(path)
        _flush(work)
        if target.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=parent))
            os.replace(target, old / target.name)
            os.replace(work, target)
            shutil.rmtree(old)
        else:
            os.replace(work, target)
        _flush(parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read_inside(folder: Path, name: str, limit: int | None = None) -> bytes:
    """Read the plain file ``name`` of ``folder``; links are refused because they can lead outside.

    Args:
        limit: largest size in bytes that is read.

    Raises:
        InvalidArtifact: missing, not a plain file, or larger than ``limit``.
    """
    path = folder / name
    if path.is_symlink() or not path.is_file():
        what = "is a link" if path.is_symlink() else "is missing"
        raise InvalidArtifact(f"{path} {what}.", "Get a complete copy of the folder, made of plain files.")
    if limit is not None and path.stat().st_size > limit:
        raise InvalidArtifact(f"{path} is larger than {limit} bytes.", "It is not what its name says; get it again.")
    return path.read_bytes()


def require_hashes(folder: Path, files: dict[str, str]) -> None:
    """Refuse a folder whose files are not byte for byte those that ``files`` names.

    Raises:
        InvalidArtifact: naming the first file that is missing, linked or changed.
    """
    for name, digest in sorted(files.items()):
        path = folder / name
        steps = [step for step in (path, *path.parents) if step.is_relative_to(folder) and step != folder]
        linked = any(step.is_symlink() for step in steps)
        if linked or not path.is_file():
            what = "is a link" if linked else "is missing"
            raise InvalidArtifact(f"{path} {what}.", "Get a complete copy of the folder, made of plain files.")
        if sha256_file(path) != digest:
            raise InvalidArtifact(f"{path} was changed or truncated.", "Get the folder again from its source.")
