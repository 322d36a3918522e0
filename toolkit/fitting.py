"""From a method's name and a user's options to an adapter: what `safetykit fit` does."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ..adapters.adapter import Adapter
from ..adapters.errors import UsageError
from ..adapters.sites import Phase, Scope
from ..adapters.vlm_guard import Direction, Gate, Variant, VLMGuard
from .evaluate import Progress
from .records import Record
from .sweep import fit_by_sweep
from .vlm import VLM

METHODS = ("vlm-guard",)
_CHOICES = {"variant": Variant, "direction": Direction, "gate": Gate, "scope": Scope, "phase": Phase}


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """``3-5`` or ``2,4,6-7`` as layers.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise UsageError(f"--layers {text!r} names no layers.", "Write for example 3-5 or 2,4; layers count from 0.")
        layers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(layers))


def check_method(method: str, given: Mapping[str, Any]) -> None:
    """Refuse unknown methods and options before a model is loaded.

    Raises:
        UsageError: naming what there is.
    """
    if method not in METHODS:
        raise UsageError(f"There is no method {method!r}.", f"Methods are {', '.join(METHODS)}.")
    for name, literal in _CHOICES.items():
        if name in given and given[name] not in get_args(literal):
            raise UsageError(f"--{name} cannot be {given[name]!r}.", f"It is one of {', '.join(get_args(literal))}.")


def fit(
    method: str,
    vlm: VLM,
    records: Sequence[Record],
    given: Mapping[str, Any],
    *,
    sweep: bool,
    text_model: VLM | None,
    out: Path,
    progress: Progress | None = None,
) -> Adapter:
    """Fit ``method``; with ``sweep``, what ``given`` leaves open is chosen on calibration records.

    A sweep that is interrupted goes on where it was when it is started again with the same ``out``.

    Raises:
        UsageError: the options exclude each other, or the records do not suffice.
    """
    check_method(method, given)
    if not sweep:
        return VLMGuard(**given).fit(vlm, records, text_model=text_model)
    if text_model is not None:
        raise UsageError("--sweep takes the direction from the model itself.", "Leave out --text-model or --sweep.")
    journal = out.parent / f".{out.name}.sweep.jsonl"
    return fit_by_sweep(vlm, records, given, progress=progress, journal_path=journal)
