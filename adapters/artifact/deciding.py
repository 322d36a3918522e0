"""Gates and detectors that decide nothing: always open, or never, on all that was seen while they were calibrated.

Such an adapter looks like one that protects, and does not. A fit notes in the attachment ``calibration`` between which
scores its records lie; a threshold outside of them is refused at the fit, when the adapter is loaded and before an
export, unless the fit was told to accept it, which the manifest then says (:data:`ALLOWED`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import InvalidArtifact, SafetykitError, UsageError
from .manifest import AdapterInfo, DetectorInfo

if TYPE_CHECKING:
    from .intervention import Intervention

ALLOWED = "allow_constant_gate"  # the setting, and the hyperparameter that records it
_REACH = 1e4  # times the size of a gate's mean state: further off no state lies


class Calibrated(Protocol):
    """What is looked at of an adapter."""

    @property
    def info(self) -> AdapterInfo: ...
    @property
    def interventions(self) -> tuple[Intervention, ...]: ...
    @property
    def attachments(self) -> Mapping[str, Any]: ...
    @property
    def detector(self) -> DetectorInfo | None: ...


def gate_at(site: object) -> str:
    """How the attachment ``calibration`` calls the gate at a site."""
    return f"gate at {site}"


def constant_decisions(adapter: Calibrated) -> list[str]:
    """What of an adapter decides the same whatever it is shown, in words."""
    from ..ops.gating import GatedOp  # needs torch

    found = []
    seen = {str(row.get("what")): row.get("scores") for row in _rows(adapter)}
    for item in adapter.interventions:
        if isinstance(item.make_op(), GatedOp) and "threshold" in item.tensors:
            threshold, what = float(item.tensors["threshold"]), gate_at(item.site)
            scores = seen.get(what) or _reachable(item)
            found += _constant(f"the {what}", threshold, scores, "opens", "is always open")
    if adapter.detector is not None and (scores := seen.get("detector")):
        found += _constant("the detector", adapter.detector.threshold, scores, "refuses", "always refuses")
    return found


def accepts_constant(info: AdapterInfo) -> bool:
    """Whether the fit was told to accept a gate that decides nothing."""
    return info.hyperparameters.get(ALLOWED) is True


def require_deciding(adapter: Calibrated, where: str = "") -> None:
    """Refuse an adapter with a gate or detector that decides nothing, unless its fit was told to accept it.

    Args:
        where: the folder that it was read from; it then is a damaged artifact.

    Raises:
        UsageError: naming the gate and its threshold.
        InvalidArtifact: the same of one that was read from a folder.
    """
    found = [] if accepts_constant(adapter.info) else constant_decisions(adapter)
    if not found:
        return
    kind: type[SafetykitError] = InvalidArtifact if where else UsageError
    said = "; ".join(found)
    raise kind(
        f"{where}: {said}." if where else f"{said[0].upper()}{said[1:]}.",
        "It would protect nothing, or change every answer. Fit another gate (such as --gate calibrated) or layer, or "
        "accept it with --allow-constant-gate; manifest and card then say so.",
    )


def _rows(adapter: Calibrated) -> list[Mapping[str, Any]]:
    rows = adapter.attachments.get("calibration")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _reachable(item: Intervention) -> tuple[float, float] | None:
    """Scores that states can have at all, where no calibration noted them."""
    if not {"mean", "gate"} <= item.tensors.keys():
        return None
    mean, gate = (item.tensors[name].double() for name in ("mean", "gate"))
    most = _REACH * float((1 + mean.norm()) * gate.norm())
    return -most, most


def _constant(what: str, threshold: float, scores: Any, opens: str, always: str) -> list[str]:
    low, high = _range(scores)
    if threshold >= high:
        return [f"{what} never {opens}: its threshold {threshold:.4g} is not below any score, the largest {high:.4g}"]
    if threshold < low:
        return [f"{what} {always}: its threshold {threshold:.4g} is below every score, the smallest {low:.4g}"]
    return []


def _range(scores: Any) -> tuple[float, float]:
    try:
        low, high = map(float, scores)
    except (TypeError, ValueError, OverflowError):
        low, high = float("-inf"), float("inf")
    return low, high
