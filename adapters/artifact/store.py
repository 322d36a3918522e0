"""Adapters and their folders, as functions; see :mod:`.folder` for what a folder holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import WrongBase
from .adapter import Adapter
from .files import MANIFEST
from .folder import files_of, read_manifest
from .manifest import GraphWeights

__all__ = ["load_adapter", "manifest_digest", "read_manifest", "require_base", "require_weights", "save_adapter"]


def save_adapter(adapter: Adapter, folder: Path | str, *, overwrite: bool = False) -> Path:
    """See :meth:`Adapter.save`."""
    return adapter.save(folder, overwrite=overwrite)


def load_adapter(folder: Path | str) -> Adapter:
    """See :meth:`Adapter.load`."""
    return Adapter.load(folder)


def manifest_digest(adapter: Adapter) -> str:
    """SHA-256 of an adapter's manifest file, which holds the digest of every other file: its identity."""
    return adapter.read_as or hashlib.sha256(files_of(adapter)[MANIFEST]).hexdigest()


def require_base(adapter: Adapter, fingerprint: str, name: str, *, choice: bool = True) -> None:
    """Refuse an adapter that was fitted on another model.

    Args:
        fingerprint: of the model it is asked to change.
        name: how to call that model in the error.
        choice: whether the user can accept it.

    Raises:
        WrongBase: the fingerprints differ.
    """
    if adapter.info.base.fingerprint != fingerprint:
        options = adapter.attachments.get("fit_options")
        template = options.get("chat-template") if isinstance(options, dict) else None
        own = f" It was fitted with --chat-template {template}: pass that, too." if template else ""
        raise WrongBase(
            f"The adapter ({adapter.info.method}) was fitted on model {adapter.info.base.fingerprint[:12]}, "
            f"but {name} is {fingerprint[:12]}.",
            f"Fit it on this model{', or pass --allow-wrong-base; the card then shows that you did' * choice}.{own}",
        )


def require_weights(adapter: Adapter, held: GraphWeights | None, name: str) -> None:
    """Refuse an adapter that was fitted on a graph's rounded weights where the model runs with others.

    Args:
        held: what the model runs with; None for its own weights.
        name: how to call the model in the error.

    Raises:
        WrongBase: the weights differ.
    """
    on = adapter.info.base.on
    if on is not None and on != held:
        runs = f"the {held.precision} weights {held.sha256[:12]}" if held else "its own weights"
        raise WrongBase(
            f"The adapter ({adapter.info.method}) was fitted on {on.precision} weights of a graph, {on.sha256[:12]}, "
            f"but {name} runs with {runs}.",
            "Use it in an export with these weights, fit one without --on, or pass --allow-wrong-base.",
        )
