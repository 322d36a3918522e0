"""The cache of the Hugging Face Hub, as its client lays it out."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

REVISION = "0123456789abcdef0123456789abcdef01234567"


def in_cache(folder: Path, cache: Path, repository: str, branch: str = "main") -> Path:
    """The snapshot that a download of ``folder`` as ``repository`` leaves: links into blobs."""
    home = cache / f"models--{repository.replace('/', '--')}"
    blobs, snapshot = home / "blobs", home / "snapshots" / REVISION
    for place in (blobs, home / "refs"):
        place.mkdir(parents=True)
    (home / "refs" / branch).write_text(REVISION)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob, link = blobs / hashlib.sha256(path.read_bytes()).hexdigest(), snapshot / path.relative_to(folder)
        shutil.copyfile(path, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
