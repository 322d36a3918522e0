"""Adapters and their folders, as functions; see :mod:`.folder` for what a folder holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import WrongBase
from .adapter import Adapter
from .files import MANIFEST
from .folder import files_of, read_manifest

__all__ = ["load_adapter", "manifest_digest", "read_manifest", "require_base", "save_adapter"]


def save_adapter(adapter: Adapter, folder: Path | str, *, overwrite: bool = False) -> Path:
    """See :meth:`Adapter.save`."""
    return adapter.save(folder, overwrite=overwrite)


def load_adapter(folder: Path | str) -> Adapter:
    """See :meth:`Adapter.load`."""
    return Adapter.load(folder)


def manifest_digest(adapter: Adapter) -> str:
    """SHA-256 of an adapter's manifest file, which holds the digest of every other file: its identity."""
    return adapter.read_as or hashlib.sha256(files_of(adapter)[MANIFEST]).hexdigest()


def require_base(adapter: Adapter, fingerprint: str, name: str) -> None:
    """Refuse an adapter that was fitted on another model.

    Args:
        fingerprint: of the model it is asked to change.
        name: how to call that model in the error.

    Raises:
        WrongBase: the fingerprints differ.
    """
    if adapter.info.base.fingerprint != fingerprint:
        raise WrongBase(
            f"The adapter ({adapter.info.method}) was fitted on model {adapter.info.base.fingerprint[:12]}, "
            f"but {name} is {fingerprint[:12]}.",
            "Fit it on this model, or pass --allow-wrong-base; the card then shows that you did.",
        )
