"""Commands of the command line that need the PyTorch model."""

from __future__ import annotations

from .fitting import fit_group

fit = fit_group()
