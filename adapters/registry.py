"""Every method there is: ours, and those of installed packages.

A method registers by an entry point of the group ``safetykit.methods`` that names its :class:`Method`::

    [project.entry-points."safetykit.methods"]
    my-method = "my_package:METHOD"

Ours are found as ``METHOD`` in the module ``method`` of each package beside this file, and go through the same
function.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from warnings import warn

from .errors import UsageError
from .method import Method
from .settings import did_you_mean, listed

GROUP = "safetykit.methods"
_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Make a method known under its name.

    Raises:
        TypeError: it is no :class:`Method`, or another one has its name.
    """
    if not isinstance(method, Method):
        raise TypeError(f"{method!r} is no Method.")
    for known in _METHODS.values():
        if known is not method and {known.name, known.manifest_name} & {method.name, method.manifest_name}:
            raise TypeError(f"Two methods are called {method.name!r}.")
    return _METHODS.setdefault(method.name, method)


def methods() -> dict[str, Method]:
    """All methods by name, in order of their names."""
    _find_all()
    return dict(sorted(_METHODS.items()))


def get_method(name: str) -> Method:
    """The method of this name, as people type it or as manifests record it.

    Raises:
        UsageError: there is none.
    """
    if (method := find_method(name)) is not None:
        return method
    known = methods()
    hint = did_you_mean(name, list(known)) or f"There is {listed(list(known))}."
    raise UsageError(f"There is no method {name!r}.", hint)


def find_method(name: str) -> Method | None:
    """The method of this name, as people type it or as manifests record it; None if there is none here."""
    return next((one for one in methods().values() if name in (one.name, one.manifest_name)), None)


def load_ops() -> None:
    """Import the ops of all methods, which registers them."""
    for method in methods().values():
        for module in method.ops:
            import_module(module)


@cache
def _find_all() -> None:
    root = Path(__file__).parent
    for module in sorted(root.glob("*/method.py")):
        register(import_module(f".{module.parent.name}.method", __package__).METHOD)
    for point in entry_points(group=GROUP):
        try:
            register(point.load())
        except Exception as error:  # somebody else's package must not take ours down
            warn(f"The method {point.name!r} of {point.value} is left out: {error}", stacklevel=2)
