"""Where checkpoints lie that are made of others; whoever wants the space back may delete them."""

from __future__ import annotations

import os
from pathlib import Path


def cache_of(kind: str) -> Path:
    """The folder of those of one kind, such as ``merged``."""
    home = os.environ.get("SAFETYKIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "safetykit"
    return Path(home).expanduser() / kind
