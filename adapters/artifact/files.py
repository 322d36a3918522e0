"""Writing so that nothing half-written is ever found under a final name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import InvalidArtifact, UsageError
from .hub import plain_file
from .manifest import canonical_json, is_sealed

MANIFEST, EXPORT_MANIFEST = "manifest.json", "safetykit.json"  # of adapter and export folders
_MARK_LIMIT = 16 * 2**20  # bytes of a file by which a folder is known

Mark = Callable[[bytes, Any], bool]  # a file's bytes and the JSON object in them → whether safetykit wrote it
Marks = Mapping[str, Mark]  # by file name


def _lora(data: bytes, body: Any) -> bool:
    """PEFT names the base and ends without a newline; what safetykit wrote does neither."""
    return "peft_type" in body and body.get("base_model_name_or_path", "") is None and data == canonical_json(body)


def _alignment(data: bytes, body: Any) -> bool:
    return set(body) == {"identity", "step", "curve"} and data == canonical_json(body)


# By one of these a folder is known as one of ours, which `--overwrite` may replace: of adapters and indexes, exports,
# channel maps, LoRA adapters, and alignments that go on where they were.
MADE: Marks = MappingProxyType(
    {
        MANIFEST: is_sealed,
        EXPORT_MANIFEST: is_sealed,
        "channel_map.json": is_sealed,
        "adapter_config.json": _lora,
        "checkpoint.json": _alignment,
    }
)
# The same of checkpoints, which transformers writes: any model's configuration.
MODEL: Marks = MappingProxyType({"config.json": lambda data, body: "model_type" in body})

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


def require_writable(target: Path) -> None:
    """Refuse an output path under which nothing can be written; worth calling before long work.

    Raises:
        UsageError: a part of it is a file, or the system does not let us.
    """
    there = next(path for path in target.absolute().parents if path.exists())
    if not there.is_dir():
        raise UsageError(f"{there} is a file, not a folder.", "Choose another place for the output.")
    try:
        tempfile.TemporaryDirectory(prefix=".", dir=there).cleanup()
    except OSError as error:
        raise UsageError(f"Nothing can be written in {there}: {error.strerror}.", "Choose another place.") from None


def require_free(
    target: Path, *, overwrite: bool = False, made: Marks = MADE, inputs: Iterable[Path | str | None] = ()
) -> None:
    """Refuse an output folder that is taken or cannot be written; worth calling before long work.

    Args:
        made: the files by one of which a folder that may be overwritten is known, each with what must be in it.
        inputs: what is read to make the output, and must survive it; what is no path that exists is passed over.

    Raises:
        UsageError: ``target`` is a file, or a folder with content and ``overwrite`` is off; or holds an input, or
            nothing that safetykit wrote.
    """
    if target.is_file():
        raise UsageError(f"{target} is a file, not a folder.", "Choose another output folder.")
    require_writable(target)
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"{target} already exists and is not empty.", "Choose another folder or pass --overwrite.")
    for path in (Path(one) for one in inputs if one):
        if path.exists() and target.resolve() in (found := path.resolve(), *found.parents):
            raise UsageError(f"{target} holds {path}, which is read to make it.", "Choose another output folder.")
    if not _is_made(target, made) and not _is_demo(target):
        some = min(target.iterdir()).name
        raise UsageError(
            f"{target} was not written by safetykit: it holds {some}.",
            "Choose another folder; --overwrite replaces adapters, exports, indexes and maps only.",
        )


def require_free_file(target: Path, *, overwrite: bool, keys: Collection[str]) -> None:
    """Refuse an output file that is taken or cannot be written; worth calling before long work.

    Args:
        keys: of the JSON object by which a file that may be overwritten is known.

    Raises:
        UsageError: ``target`` is there and ``overwrite`` is off, or it is nothing that safetykit wrote.
    """
    require_writable(target)
    if not target.exists():
        return
    if target.is_dir():
        raise UsageError(f"{target} is a folder, not a file.", "Choose another output file.")
    if not overwrite:
        raise UsageError(f"{target} already exists.", "Choose another file or pass --overwrite.")
    try:
        body = json.loads(target.read_bytes())
    except (OSError, ValueError, RecursionError):
        body = None
    if not isinstance(body, dict) or not body.keys() >= set(keys):
        raise UsageError(
            f"{target} was not written by this command.", "Choose another file; --overwrite replaces its results only."
        )


def _is_demo(folder: Path) -> bool:
    return _is_made(folder / "adapter", MADE) and _is_made(folder / "export", MADE)


def _is_made(folder: Path, made: Marks) -> bool:
    return any(_bears(folder, name, mark) for name, mark in made.items())


def _bears(folder: Path, name: str, mark: Mark) -> bool:
    """Whether a folder has the file ``name`` as safetykit writes it."""
    try:
        data = read_inside(folder, name, _MARK_LIMIT)
        body = json.loads(data)
        return isinstance(body, dict) and mark(data, body)
    except (InvalidArtifact, OSError, ValueError, RecursionError):
        return False


@contextmanager
def atomic_folder(target: Path, *, overwrite: bool = False, made: Marks = MADE) -> Iterator[Path]:
    """Yield an empty folder that becomes ``target`` only when the block ends without an error.

    On any error the folder is removed and ``target`` stays as it was.

    Args:
        made: see :func:`require_free`.

    Raises:
        UsageError: as :func:`require_free`.
    """
    target = Path(target)
    if target.name in ("", ".."):  # which cannot be renamed under this name
        target = target.resolve()
    require_free(target, overwrite=overwrite, made=made)
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
    return [name.as_posix() for name in names if name.as_posix() not in named]


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
