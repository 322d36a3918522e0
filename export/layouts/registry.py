"""Every layout there is: ours, and those of installed packages.

A layout registers by an entry point of the group ``safetykit.layouts`` that names its class::

    [project.entry-points."safetykit.layouts"]
    my-runtime = "my_package:MyLayout"

Ours are found in the modules of :mod:`.runtimes`, whose decorator is the same function.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated
from warnings import warn

from ...adapters.settings import OneOf, require_choice
from .layout import RuntimeLayout

GROUP = "safetykit.layouts"
_LAYOUTS: dict[str, RuntimeLayout] = {}


def register(layout: type[RuntimeLayout]) -> type[RuntimeLayout]:
    """Make a layout known under its name; a class decorator.

    Raises:
        TypeError: it is no layout, or another one has its name.
    """
    if not (isinstance(layout, type) and issubclass(layout, RuntimeLayout)):
        raise TypeError(f"{layout!r} is no RuntimeLayout.")
    known = _LAYOUTS.get(layout.name)
    if known is not None and type(known) is not layout:
        raise TypeError(f"Two layouts are called {layout.name!r}.")
    _LAYOUTS.setdefault(layout.name, layout())
    return layout


def layouts() -> dict[str, RuntimeLayout]:
    """All layouts by name, the plain one first."""
    _find_all()
    return dict(sorted(_LAYOUTS.items(), key=lambda item: (item[0] != "onnx", item[0])))


def layout_names() -> tuple[str, ...]:
    """Names of all layouts, the plain one first."""
    return tuple(layouts())


def get_layout(name: str) -> RuntimeLayout:
    """The layout of this name.

    Raises:
        UsageError: there is none; the nearest name is given.
    """
    require_choice("layout", name, layout_names())
    return layouts()[name]


LayoutName = Annotated[str, OneOf(layout_names)]


@cache
def _find_all() -> None:
    package = f"{__package__}.runtimes"
    for module in sorted((Path(__file__).parent / "runtimes").glob("[!_]*.py")):
        import_module(f"{package}.{module.stem}")
    for point in entry_points(group=GROUP):
        try:
            register(point.load())
        except Exception as error:  # somebody else's package must not take ours down
            warn(f"The layout {point.name!r} of {point.value} is left out: {error}", stacklevel=2)
