"""What a sweep tries, as far as a method can say it: its grids, and how settings become adapters from few passes.

The running of trials, which needs a model that answers, is :mod:`safetykit.toolkit.sweep`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import UsageError
from .settings import Settings

if TYPE_CHECKING:
    from .artifact.adapter import Adapter
    from .protocols import Workbench

S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Plan:
    """A sweep of two rounds; ``given`` are the user's own settings, which every trial keeps.

    Attributes:
        first: ``(n_layers, d_model, given) -> settings`` of the first round.
        around: ``(setting, d_model, given) -> settings`` of the second round, around one leader of the first.
        kind: what kind a setting is of; the best of each kind is a leader.
        solver: from a workbench to what makes an adapter of a setting; it keeps statistics for all of them.
    """

    first: Callable[[int, int, Mapping[str, Any]], list[Any]]
    around: Callable[[Any, int, Mapping[str, Any]], list[Any]]
    kind: Callable[[Any], Any]
    solver: Callable[[Workbench], Callable[[Any], Adapter]]


def fixed(tried: Iterable[S], given: Mapping[str, Any]) -> list[S]:
    """``tried`` with the given settings, each once, in order.

    A variant is not changed into another, and what the given settings exclude is left out: the supervised variant
    when a phase beyond prefill is given, a gate without a rate when a rate is given.
    """
    found: dict[S, None] = {}
    for one in tried:
        if given.get("variant", getattr(one, "variant", None)) != getattr(one, "variant", None):
            continue
        try:
            found[one.but(**given)] = None
        except UsageError:
            continue
    return list(found)


def require_some(kind: type[Settings], tried: list[S], given: Mapping[str, Any]) -> list[S]:
    """``tried``, unless it is empty.

    Raises:
        UsageError: the given settings leave nothing to try; with the reason, where they exclude each other.
    """
    if not tried:
        kind(**given)
        raise UsageError("The given settings leave nothing for a sweep to try.", "Leave some of them out.")
    return tried
