"""How strongly the adapters of a hot-swap export act: what each of its ops adds to the hidden state, times a factor.

An op that names its strength λ (:attr:`~safetykit.adapters.Corrector.strength`) adds Δ(h, λ) with Δ(h, s·λ) =
s·Δ(h, λ). So 1 is as fitted, and 0 changes nothing. That holds of a model only where all that changes it has such a
parameter: an op that sets states to a target has none, and neither have new weights. Gates and detectors judge by the
thresholds they had; they read states that ops before them change, and so risks follow the strength.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ...adapters.errors import UsageError
from ..manifest import ExportManifest
from .hotswap import Swap, require_swappable


def strengths(manifest: ExportManifest) -> tuple[str, ...]:
    """The parameters, by their names in the graphs, that say how strongly the adapters act.

    Raises:
        UsageError: the export's mode is not hot-swap, nothing in it changes the model, or something that does has no
            strength.
    """
    require_swappable(manifest)
    found = {one.source.partition(".")[0]: one.name for one in manifest.parameters if one.strength}
    changes = [one for one in manifest.interventions if "risk" not in one.extras]  # what detectors say
    without = [f"{one.op} at {one.site}" for one in changes if str(one.index) not in found]
    if manifest.updates:
        without.append(f"new weights ({len(manifest.updates)})")
    if without:
        raise UsageError(
            f"Without a strength: {', '.join(without)}. It cannot be scaled from none to as fitted.",
            "Fit it in several strengths, export each with --mode hot-swap, and swap them.",
        )
    if not found:
        raise UsageError("No op of this export changes the model, so there is no strength.", "Export a corrector.")
    return tuple(found.values())


def scaled(swap: Swap, manifest: ExportManifest, factor: float) -> Swap:
    """``swap`` with every strength ``factor`` times what it is; all other arrays are shared with it.

    Args:
        factor: 0 switches all ops off, 1 leaves them as they are.

    Raises:
        UsageError: as of :func:`strengths`; or the factor is negative, no number or too large for the graphs.
    """
    names = strengths(manifest)
    if not math.isfinite(factor) or factor < 0:
        raise UsageError(f"{factor} is no strength.", "Give 0 (off), 1 (as fitted), or any number above.")
    arrays = dict(swap.arrays)
    for name in names:
        with np.errstate(over="ignore"):
            arrays[name] = (arrays[name].astype(np.float64) * factor).astype(arrays[name].dtype)
        if not np.isfinite(arrays[name]).all():
            raise UsageError(f"{name} times {factor:g} overflows {arrays[name].dtype}.", "Take a smaller strength.")
    return replace(swap, arrays=arrays)
