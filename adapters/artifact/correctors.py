"""What a manifest says about the adapters that were applied while another one was fitted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from ..errors import UsageError
from .stack import describe_corrector
from .store import load_adapter


def describe_correctors(folders: Sequence[Path]) -> list[dict[str, JsonValue]]:
    """Method, variant and ``manifest_sha256`` of each, in order.

    ``manifest_sha256`` is that of the corrector's manifest file, which holds the digest of every other file.

    Raises:
        UsageError: one of them is a detector itself.
    """
    found: list[dict[str, JsonValue]] = []
    for folder in folders:
        adapter = load_adapter(folder)
        if adapter.detector is not None:
            raise UsageError(f"{folder} is a detector itself.", "--with takes correctors; a request has one detector.")
        found.append(describe_corrector(adapter))
    return found
