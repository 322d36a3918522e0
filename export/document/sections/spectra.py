"""``spectra.json``: singular values per layer, largest first."""

from __future__ import annotations

from ....adapters.section import LayerName, Section
from .. import plots

Spectra = dict[LayerName, list[float]]

SPECTRA = Section("spectra", Spectra, lambda spectra, tag, draw: (plots.spectra(spectra, tag),))
