"""Sections of card and report, one module a kind of attachment; attachments without one are only carried along.

Those that a method declares for itself come after ours.
"""

from __future__ import annotations

from ....adapters.method import load
from ....adapters.registry import methods
from ....adapters.section import Section
from .alignment import ALIGNMENT
from .care import CARE
from .detector import DETECTOR
from .diagnosis import DIAGNOSIS
from .retrieval import ACCURACY, RETRIEVAL
from .spectra import SPECTRA
from .sweep import SWEEP
from .training import TRAINING

_IN_ORDER = (DIAGNOSIS, SWEEP, SPECTRA, CARE, DETECTOR, TRAINING, ALIGNMENT, RETRIEVAL, ACCURACY)


def sections() -> dict[str, Section]:
    """All sections by name, in the order of a card.

    Raises:
        TypeError: two of them, which are not the same, have one name.
    """
    found: dict[str, Section] = {}
    declared = (section for method in methods().values() for section in load(method.sections))
    for section in (*_IN_ORDER, *declared):
        if found.setdefault(section.name, section) is not section:
            raise TypeError(f"Two sections are called {section.name!r}.")
    return found


def template(name: str) -> str | None:
    """The text of ``section_<name>.md.jinja`` or ``.html.jinja`` where a section brings its own."""
    for section in sections().values():
        for text, kind in ((section.markdown, "md"), (section.html, "html")):
            if text and name == f"section_{section.name}.{kind}.jinja":
                return text
    return None
