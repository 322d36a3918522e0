"""Every family there is: ours, and those of installed packages; anything else is refused by name, for a graph exported
on a guess can be wrong in ways that no checker sees.

A family registers by an entry point of the group ``safetykit.families`` that names its class::

    [project.entry-points."safetykit.families"]
    my_vlm = "my_package:MyVLM"

Ours are found in the modules beside this file, whose decorator is the same function.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar
from warnings import warn

from ...adapters.errors import UsageError
from ...adapters.settings import did_you_mean
from .family import Family

GROUP = "safetykit.families"
F = TypeVar("F", bound=type[Family])
_FAMILIES: dict[str, Family] = {}
_ANY = Family()  # what every VLM has in common; enough to run it in PyTorch


def register(family: F) -> F:
    """Make a family known under its model type; a class decorator.

    Raises:
        TypeError: it is no family, or another one has its name.
    """
    if not (isinstance(family, type) and issubclass(family, Family)):
        raise TypeError(f"{family!r} is no Family.")
    known = _FAMILIES.get(family.name)
    if known is not None and type(known) is not family:
        raise TypeError(f"Two families are called {family.name!r}.")
    _FAMILIES.setdefault(family.name, family())
    return family


def families() -> dict[str, Family]:
    """All families that can be exported, by model type."""
    return {name: family for name, family in sorted(_found().items()) if family.obstacle is None}


def family_names() -> tuple[str, ...]:
    """The model types that can be exported."""
    return tuple(families())


def titles() -> dict[str, str]:
    """How people call the models of each type, and those that share a type with others."""
    found = {}
    for name, family in families().items():
        found |= {name: family.title or name, **family.relatives}
    return found


def family_or_any(config: Any) -> Family:
    """The family of a configuration; for one that cannot be exported, what all VLMs have in common."""
    return families().get(getattr(config, "model_type", ""), _ANY)


def family_of(config: Any) -> Family:
    """The family of a transformers configuration, after checking that its graphs can be exported.

    Raises:
        UsageError: the architecture is not supported; the message says why when that is known.
    """
    name = str(getattr(config, "model_type", type(config).__name__))
    family = _found().get(name)
    if family is None or family.obstacle is not None:
        reason = f": {family.obstacle}" if family is not None else ""
        known = list(families())
        hint = f"It exports {', '.join(known)}; for others pass graphs made elsewhere with --base-onnx."
        raise UsageError(
            f"safetykit has no base export for the architecture {name!r}{reason}.",
            hint if family is not None else f"{did_you_mean(name, known)} {hint}".strip(),
        )
    family.check(config)
    return family


def exportable(config: Any) -> dict[str, Any]:
    """Whether the base graphs of a configuration can be exported, and if not, why."""
    try:
        return {"supported": True, "family": family_of(config).name, "reason": None}
    except UsageError as error:
        return {"supported": False, "family": None, "reason": str(error)}


def _found() -> dict[str, Family]:
    _find_all()
    return _FAMILIES


@cache
def _find_all() -> None:
    for module in sorted(Path(__file__).parent.glob("[!_]*.py")):
        import_module(f".{module.stem}", __package__)
    for point in entry_points(group=GROUP):
        try:
            register(point.load())
        except Exception as error:  # somebody else's package must not take ours down
            warn(f"The family {point.name!r} of {point.value} is left out: {error}", stacklevel=2)
