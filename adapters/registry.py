"""Every method there is: ours, and those of installed packages (entry points of the group ``safetykit.methods``).

Ours are found as ``METHOD`` in the module ``method`` of each package beside this file, and go through the same
function as anybody's.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .errors import UsageError
from .method import Method
from .near import did_you_mean
from .plugins import Registry
from .settings import listed


def _ours() -> None:
    for module in sorted(Path(__file__).parent.glob("*/method.py")):
        METHODS.register(import_module(f".{module.parent.name}.method", __package__).METHOD)


METHODS = Registry(
    Method, ("method", "methods"), "safetykit.methods", _ours, names=lambda method: {method.name, method.manifest_name}
)
register = METHODS.register
methods = METHODS.all


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
