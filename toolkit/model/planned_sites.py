"""Sites that a checkpoint's decoder does not have, refused before its weights are read."""

from __future__ import annotations

from pathlib import Path

from ...adapters.artifact.sites import Site
from ...adapters.errors import SafetykitError
from ...adapters.settings import Settings
from .parts import Parts
from .quantised import skeleton

_BRANCHES = ("attn", "mlp")


def require_branches(folder: Path, settings: Settings | None) -> None:
    """Refuse a fit at branches of blocks that have none, as far as their names tell; numbers tell the rest.

    Args:
        folder: the checkpoint. What cannot be read of it, loading explains.
        settings: of the fit, as far as they are known.

    Raises:
        UsageError: naming the first site that does not exist.
    """
    kind = getattr(settings, "site", None)
    if kind not in _BRANCHES:
        return
    try:
        parts = Parts.find(skeleton(folder))
    except SafetykitError:
        raise
    except Exception:  # of a file that is not as it should be, transformers may raise anything
        return
    for layer in getattr(settings, "layers", None) or range(len(parts.layers)):
        parts.module(Site(kind, layer))
