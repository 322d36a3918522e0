"""What an interrupted command has kept, and whether another one may go on from it: only the same work may."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from ..errors import LeftBehind, UsageError
from .held import begins_anew, ends_with_output
from .manifest import canonical_json

Identity = Mapping[str, JsonValue]  # what work depends on, by the words in which a user is told of it


def digests(identity: Identity) -> dict[str, str]:
    """SHA-256 of each part of an identity."""
    return {name: hashlib.sha256(canonical_json(value)).hexdigest() for name, value in identity.items()}


def goes_on(path: Path, kept: Any, identity: Identity, told: str) -> bool:
    """Whether work goes on from what is kept of it; False where ``--overwrite`` gives that up, which is said.

    Args:
        path: of what is kept, which stays as it is.
        kept: the :func:`digests` that are stored there; anything else is of another version.
        identity: of this work; a part of it is compared alone.
        told: how much is kept, such as "126 finished parts".

    Raises:
        UsageError: it is kept of other work, and nothing says that it may go.
    """
    now = digests(identity)
    known = kept if isinstance(kept, dict) else {}
    differs = [name for name, digest in now.items() if known.get(name) != digest] if known else ["version"]
    if not differs:
        return True
    if begins_anew(path):
        warnings.warn(f"{told} of other work ({', '.join(differs)}) in {path} were dropped.", LeftBehind, stacklevel=2)
        return False
    anew = "pass --overwrite to begin anew, or choose another output" if ends_with_output(path) else f"or remove {path}"
    raise UsageError(
        f"{told} of an interrupted command are kept in {path}, and it had other: {', '.join(differs)}.",
        f"Repeat that command to go on, {anew}.",
    )
