"""Every option of every `safetykit fit METHOD` in a command that works; see :mod:`command_cases`."""

from fit_alignment_cases import ALIGNMENTS
from fit_corrector_cases import CORRECTORS
from fit_detector_cases import DETECTORS

FITS = [*CORRECTORS, *DETECTORS, *ALIGNMENTS]
