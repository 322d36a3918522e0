"""The registry of families: anything else is refused by name, for a graph exported on a guess can be wrong in ways
that no checker sees."""

from __future__ import annotations

from typing import Any, TypeVar

from ...adapters.errors import UsageError
from .family import Family

F = TypeVar("F", bound=type[Family])
_FAMILIES: dict[str, Family] = {}
_ANY = Family()  # what every VLM has in common; enough to run it in PyTorch

# Why the obvious candidates are not exported yet.
_REASONS = {
    "mllama": "its decoder attends across to the picture instead of reading image tokens",
}


def register(family: F) -> F:
    """Add a family; a class decorator.

    Raises:
        TypeError: the name is taken.
    """
    if family.name in _FAMILIES:
        raise TypeError(f"Two families are called {family.name!r}.")
    _FAMILIES[family.name] = family()
    return family


def family_names() -> tuple[str, ...]:
    """The model types that can be exported."""
    return tuple(sorted(_FAMILIES))


def family_or_any(config: Any) -> Family:
    """The family of a configuration; for one that cannot be exported, what all VLMs have in common."""
    return _FAMILIES.get(getattr(config, "model_type", ""), _ANY)


def family_of(config: Any) -> Family:
    """The family of a transformers configuration, after checking that its graphs can be exported.

    Raises:
        UsageError: the architecture is not supported; the message says why when that is known.
    """
    name = str(getattr(config, "model_type", type(config).__name__))
    if name not in _FAMILIES:
        reason = f": {_REASONS[name]}" if name in _REASONS else ""
        raise UsageError(
            f"safetykit has no base export for the architecture {name!r}{reason}.",
            f"It exports {', '.join(family_names())}; for others pass graphs made elsewhere with --base-onnx.",
        )
    _FAMILIES[name].check(config)
    return _FAMILIES[name]


def exportable(config: Any) -> dict[str, Any]:
    """Whether the base graphs of a configuration can be exported, and if not, why."""
    try:
        return {"supported": True, "family": family_of(config).name, "reason": None}
    except UsageError as error:
        return {"supported": False, "family": None, "reason": str(error)}
