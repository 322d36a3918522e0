"""Every defence there is, by the name that people type."""

from __future__ import annotations

from collections.abc import Iterable

from ...adapters.errors import UsageError
from ...adapters.near import did_you_mean
from ..data.records import Record
from .defence import Asked, Defence
from .ecso import ECSO
from .system_prompt import SystemPrompt

DEFENCES: dict[str, type[Defence]] = {one.name: one for one in (ECSO, SystemPrompt)}


def defended(model: Asked, name: str) -> Defence:
    """A model behind a defence; of its batches, requests without a picture are asked as they are.

    Raises:
        UsageError: there is no such defence.
    """
    if name not in DEFENCES:
        hint = did_you_mean(name, list(DEFENCES)) or f"There is {' and '.join(DEFENCES)}."
        raise UsageError(f"There is no defence {name!r}.", hint)
    return DEFENCES[name](model)


def require_defensible(name: str, records: Iterable[Record]) -> None:
    """Refuse a defence of records on which it does nothing.

    Raises:
        UsageError: none has a picture.
    """
    if not any(record.pictured for record in records):
        raise UsageError(
            f"The defence {name} does nothing for these records: none has a picture, and text is asked as it is.",
            "Leave out --defence, or choose records with pictures.",
        )
