"""Sections of card and report, one module a kind of attachment; attachments without one are only carried along."""

from __future__ import annotations

from .alignment import ALIGNMENT
from .care import CARE
from .detector import DETECTOR
from .diagnosis import DIAGNOSIS
from .retrieval import ACCURACY, RETRIEVAL
from .section import Section
from .spectra import SPECTRA
from .sweep import SWEEP
from .training import TRAINING

_IN_ORDER = (DIAGNOSIS, SWEEP, SPECTRA, CARE, DETECTOR, TRAINING, ALIGNMENT, RETRIEVAL, ACCURACY)
SECTIONS: dict[str, Section] = {section.name: section for section in _IN_ORDER}
