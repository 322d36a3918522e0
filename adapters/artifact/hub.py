"""Folders in the cache of the Hugging Face Hub: how they are named, and where their links may lead.

A repository lies there as ``models--org--name/``: the files of ``snapshots/<revision>/`` are links into ``blobs/``,
which hold their bytes (https://huggingface.co/docs/huggingface_hub/guides/manage-cache). Such a link, and no other one,
stands for a plain file of an artifact.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidArtifact, UsageError

_ID = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
_KINDS = ("models", "datasets", "spaces")
# Weights in formats that are never read here; a cache without them is complete.
_UNREAD = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.gguf", "*.ot", "original/*")


@dataclass(frozen=True)
class Snapshot:
    """A revision of a repository in the cache.

    Attributes:
        repository: ``org/name``.
        blobs: the folder that its links lead into.
    """

    repository: str
    blobs: Path


def snapshot_of(folder: Path) -> Snapshot | None:
    """The snapshot that ``folder`` is, or lies in; None where it lies in no cache."""
    found = folder.resolve()
    for place in (found, *found.parents):
        kind, *names = place.parent.parent.name.split("--")
        blobs = place.parent.parent / "blobs"
        if place.parent.name == "snapshots" and kind in _KINDS and names and blobs.is_dir() and not blobs.is_symlink():
            return Snapshot("/".join(names), blobs)
    return None


def name_of(folder: Path) -> str:
    """How people call a folder: ``org/name`` of a snapshot, whose own name is a revision; else its last part."""
    found = snapshot_of(folder)
    return found.repository if found else folder.resolve().name


def located(given: Path | str) -> Path:
    """The path itself, or the snapshot in the local cache that an id ``org/name`` or ``org/name@revision`` names.

    Nothing is downloaded. A path that is there wins, and what cannot be an id is handed back as it is.

    Raises:
        UsageError: an id that the cache does not hold, or not all of.
    """
    text = str(given)
    found = _ID.fullmatch(text)
    if found is None or Path(given).exists():
        return Path(given)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository, revision = found["repository"], found["revision"]
    try:
        folder = snapshot_download(repository, revision=revision, local_files_only=True, ignore_patterns=[*_UNREAD])
    except HFValidationError:
        return Path(given)
    except LocalEntryNotFoundError:
        fetched = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
        raise UsageError(
            f"There is no folder {text}, and the cache of the Hugging Face Hub does not hold all of such a repository.",
            f"Correct the path, or fetch the repository: `{fetched}`.",
        ) from None
    return Path(folder)


def plain_file(folder: Path, name: str) -> Path:
    """The plain file ``name`` of an artifact's folder: itself, or the blob of the folder's own repository.

    Raises:
        InvalidArtifact: it is missing, not a plain file, or a link that leads elsewhere.
    """
    path = folder / name
    between = [step for step in path.parents if step.is_relative_to(folder) and step != folder]
    if any(step.is_symlink() for step in between):
        raise _refused(path, "is a link")
    if path.is_symlink():
        found, target = snapshot_of(path.parent), Path(os.path.normpath(path.parent.resolve() / os.readlink(path)))
        if found is None or target.parent != found.blobs or target.is_symlink():
            raise _refused(path, "is a link")
        path = target
    if not path.is_file():
        raise _refused(folder / name, "is missing")
    return path


def weights_folder(folder: Path) -> Path:
    """Where the bytes of the files in ``folder`` lie: there, or in the blobs of its repository if they are links."""
    found = snapshot_of(folder)
    return found.blobs if found and any(path.is_symlink() for path in folder.iterdir()) else folder


def _refused(path: Path, what: str) -> InvalidArtifact:
    return InvalidArtifact(f"{path} {what}.", "Get a complete copy of the folder, made of plain files.")
