"""What registers itself by name: ours, and what installed packages bring by an entry point.

Methods, layouts and families of models are found alike. A package names what it declares in an entry point::

    [project.entry-points."safetykit.methods"]
    my-method = "my_package:METHOD"
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, Protocol, TypeVar
from warnings import warn


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)
D = TypeVar("D")


class Registry(Generic[N]):
    """Instances of one kind, by name; they are looked for when they are first asked for.

    Args:
        kind: their class.
        words: what errors call one, and several.
        group: the group of entry points that others register by.
        ours: registers those of this package, as importing their modules does.
        names: every name of one that no other may have.
    """

    def __init__(
        self,
        kind: type[N],
        words: tuple[str, str],
        group: str,
        ours: Callable[[], None],
        names: Callable[[N], set[str]] = lambda one: {one.name},
    ) -> None:
        self.group = group
        self._kind, self._ours, self._names = kind, ours, names
        self._one, self._many = words
        self._declared: dict[str, object] = {}
        self._made: dict[str, N] = {}
        self._searched = False

    def register(self, declared: D) -> D:
        """Make one known; a class, of which one instance is made, or an instance. Serves as a decorator.

        Raises:
            TypeError: it is none of the kind, or another one has its name.
        """
        of_kind = isinstance(declared, type) and issubclass(declared, self._kind)
        one = declared() if of_kind else declared  # type: ignore[operator]
        if not isinstance(one, self._kind):
            raise TypeError(f"{declared!r} is no {self._kind.__name__}.")
        for name, known in self._made.items():
            if self._declared[name] is not declared and self._names(known) & self._names(one):
                raise TypeError(f"Two {self._many} are called {one.name!r}.")
        self._made.setdefault(one.name, one)
        self._declared.setdefault(one.name, declared)
        return declared

    def all(self) -> dict[str, N]:
        """All of them, in order of their names."""
        if not self._searched:
            self._searched = True
            self._search()
        return dict(sorted(self._made.items()))

    def _search(self) -> None:
        self._ours()
        for point in entry_points(group=self.group):
            try:
                self.register(point.load())
            except Exception as error:  # somebody else's package must not take ours down
                warn(f"The {self._one} {point.name!r} of {point.value} is left out: {error}", stacklevel=4)


def import_all(package: str, folder: Path) -> None:
    """Import the modules of a package, which register what they declare.

    Args:
        folder: where they lie.
    """
    for module in sorted(folder.glob("[!_]*.py")):
        import_module(f"{package}.{module.stem}")
