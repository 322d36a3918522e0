"""``spectra.json``: singular values per layer, largest first."""

from __future__ import annotations

from .. import plots
from .section import LayerName, Section

Spectra = dict[LayerName, list[float]]

SPECTRA = Section("spectra", Spectra, lambda spectra, tag: (plots.spectra(spectra, tag),))
