"""Where checkpoints lie that are made of others; whoever wants the space back may delete them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...adapters.artifact.held import held
from ..distributed.job import local_rank
from ..distributed.world import from_first


def cache_of(kind: str) -> Path:
    """The folder of those of one kind, such as ``merged``."""
    home = os.environ.get("SAFETYKIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "safetykit"
    return Path(home).expanduser() / kind


def made_once(target: Path, make: Callable[[], object]) -> Path:
    """A folder of the cache, which ``make`` makes unless it is there; once, whichever processes ask for it."""
    if local_rank() == 0 and not target.is_dir():
        with held(target, wait=True):  # another process may be making the same one
            if not target.is_dir():
                make()
    from_first(None)  # until then the other processes of this machine wait for it
    return target
