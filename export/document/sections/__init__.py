"""Sections of card and report, one a kind of attachment; attachments without one are only carried along.

Those that methods share are modules here; those of one method are declared by it and come after.
"""

from __future__ import annotations

from ....adapters.method import load
from ....adapters.registry import methods
from ....adapters.section import Section
from .budget import BUDGET
from .detector import DETECTOR
from .diagnosis import DIAGNOSIS
from .spectra import SPECTRA
from .sweep import SWEEP

_SHARED = (DIAGNOSIS, BUDGET, SWEEP, SPECTRA, DETECTOR)


def sections() -> dict[str, Section]:
    """All sections by name, in the order of a card.

    Raises:
        TypeError: two of them, which are not the same, have one name.
    """
    found: dict[str, Section] = {}
    declared = (section for method in methods().values() for section in load(method.sections))
    for section in (*_SHARED, *declared):
        if found.setdefault(section.name, section) is not section:
            raise TypeError(f"Two sections are called {section.name!r}.")
    return found


def template(name: str) -> str | None:
    """The text of ``section_<name>.md.jinja`` or ``.html.jinja`` where a section brings its own."""
    for section in sections().values():
        for text, kind in ((section.markdown, "md"), (section.html, "html")):
            if text is not None and name == f"section_{section.name}.{kind}.jinja":
                return text
    return None
