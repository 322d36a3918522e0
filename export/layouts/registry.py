"""Every layout there is: ours, and those of installed packages (entry points of the group ``safetykit.layouts``).

Ours are found in the modules of :mod:`.runtimes`, whose decorator is the same function as anybody's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from ...adapters.plugins import Registry, import_all
from ...adapters.settings import OneOf, require_choice
from .layout import RuntimeLayout

LAYOUTS = Registry(
    RuntimeLayout,
    ("layout", "layouts"),
    "safetykit.layouts",
    ours=lambda: import_all(f"{__package__}.runtimes", Path(__file__).parent / "runtimes"),
)
register = LAYOUTS.register


def layouts() -> dict[str, RuntimeLayout]:
    """All layouts by name, the plain one first."""
    return dict(sorted(LAYOUTS.all().items(), key=lambda item: item[0] != "onnx"))


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
