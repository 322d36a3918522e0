"""Ops by name, below the ops themselves: each registers when its class is made, and looking one up loads them all."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import InvalidArtifact

if TYPE_CHECKING:
    from torch import nn

# Imported before the first look-up fails: the module that imports every method's ops.
_LOADS_ALL = "adapters.methods"


class Ops:
    """Classes of one kind of op, by name.

    Args:
        kind: what errors call them.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._found: dict[str, type[nn.Module]] = {}
        self._derived: dict[str, Callable[[type[nn.Module]], object]] = {}

    def add(self, cls: type[nn.Module]) -> None:
        """Register a class under its ``name``; one without a name of its own is abstract, and left out.

        Raises:
            TypeError: the name is taken.
        """
        name = getattr(cls, "name", None)
        if name is None:
            return
        if name in self._found:
            other = self._found[name].__qualname__
            raise TypeError(f"Two {self._kind}s are called {name!r}: {other} and {cls.__qualname__}.")
        self._found[name] = cls

    def derive(self, suffix: str, make: Callable[[type[nn.Module]], object]) -> None:
        """When ``Name<suffix>`` is asked for, let ``make`` make it of the class ``Name``, which registers it."""
        self._derived[suffix] = make

    def get(self, name: str) -> type[nn.Module]:
        """The class registered as ``name``.

        Raises:
            InvalidArtifact: there is none (an adapter from a newer version, or a damaged manifest).
        """
        if name not in self._found:
            import_module(f"{__package__.partition('.')[0]}.{_LOADS_ALL}")
        for suffix, make in self._derived.items():
            if name not in self._found and name.removesuffix(suffix) in self._found:
                make(self._found[name.removesuffix(suffix)])
        if name not in self._found:
            known = ", ".join(sorted(self._found))
            raise InvalidArtifact(f"Unknown {self._kind} {name!r}.", f"This version knows {known}; update safetykit.")
        return self._found[name]
