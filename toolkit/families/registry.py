"""Every family there is: ours, and those of installed packages (entry points of the group ``safetykit.families``).

Anything else is refused by name, for a graph exported on a guess can be wrong in ways that no checker sees. Ours are
found in the modules beside this file, whose decorator is the same function as anybody's.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from ...adapters.errors import UsageError
from ...adapters.near import did_you_mean
from ...adapters.plugins import Registry, import_all
from .family import Family
from .generic import AnyFamily
from .trial import ELSEWHERE, known

GRAPHS = ("vision_encoder", "embed_tokens", "decoder")
FAMILIES = Registry(
    Family,
    ("family", "families"),
    "safetykit.families",
    ours=lambda: import_all(str(__package__), Path(__file__).parent),
)
register = FAMILIES.register
_ANY = AnyFamily()


def families() -> dict[str, Family]:
    """All families that can be exported, by model type."""
    return {name: family for name, family in FAMILIES.all().items() if family.obstacle is None}


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
    """The family of a configuration, exported or not; for one that is not known, what all VLMs have in common."""
    return FAMILIES.all().get(getattr(config, "model_type", ""), _ANY)


def family_of(config: Any, wanted: Collection[str] = GRAPHS) -> Family:
    """The family of a transformers configuration, after checking that its graphs can be exported.

    Args:
        wanted: names of the graphs that are to be.

    Raises:
        UsageError: the architecture is not supported; the message says why when that is known.
    """
    name = str(getattr(config, "model_type", type(config).__name__))
    family = FAMILIES.all().get(name, _ANY)
    said = f"safetykit has no base export for the architecture {name!r}"
    if family.obstacle is not None:
        raise UsageError(f"{said}: {family.obstacle}.", ELSEWHERE)
    if family is not _ANY:
        family.check(config)
    elif not known(config):
        raise UsageError(f"{said}.", f"{did_you_mean(name, list(families()))} {ELSEWHERE}".strip())
    elif reasons := dict.fromkeys(reason for graph, reason in family.obstacles(config).items() if graph in wanted):
        raise UsageError(f"{said}: {'; '.join(reasons)}.", ELSEWHERE)
    return family


def exportable(config: Any) -> dict[str, Any]:
    """Whether the base graphs of a configuration can be exported, and if not, why.

    ``attention`` says why the attention of a decoder layer takes many nodes instead of one; None if it is one.
    ``graphs`` says for each graph why it cannot be exported; None if it can: the others may come from elsewhere.
    """
    try:
        family = family_of(config)
    except UsageError as error:
        family = family_or_any(config)
        known_ = family is not _ANY or known(config)
        found = {} if family.obstacle is not None or not known_ else family.obstacles(config)
        every = str(error) if family.obstacle is not None or not known_ else None
        graphs = {name: every or found.get(name) for name in GRAPHS}
        return {"supported": False, "family": None, "reason": str(error), "attention": None, "graphs": graphs}
    name, attention = family.name or config.model_type, family.attention_obstacle(config)
    graphs = dict.fromkeys(GRAPHS)
    return {"supported": True, "family": name, "reason": None, "attention": attention, "graphs": graphs}
