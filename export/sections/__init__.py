"""Sections of card and report, one module per kind of attachment; an attachment without a section is only carried along."""

from __future__ import annotations

from .care import CARE
from .detector import DETECTOR
from .section import Section
from .spectra import SPECTRA
from .sweep import SWEEP

SECTIONS: dict[str, Section] = {section.name: section for section in (SWEEP, SPECTRA, CARE, DETECTOR)}
