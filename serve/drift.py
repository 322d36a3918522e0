"""Whether what a detector and gates say in production is still what they said in their calibration.

An export holds how the risks of its harmless calibration records are spread, with and without pictures, and how often
each gate opened for them. A server compares every window of its own prompts with that. The distance is the largest
difference between the two cumulative distributions. By the inequality of Dvoretzky, Kiefer and Wolfowitz, with
Massart's constant (1990), n independent draws lie further than ``sqrt(ln(2 / a) / 2n)`` from where they come from with
a probability of at most ``a``, whatever the distribution. Calibration and window each keep within theirs, so a larger
distance than the sum of both is more than sampling explains.

``a`` is spent once: each of r references gets ``false_alarms / r``, half of it for the calibration, and of the other
half window k gets 1 / k(k+1). So the probability of *any* false alarm, however long the server runs, is at most
``false_alarms``, as long as prompts are independent of each other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, ValidationError

from ..adapters.artifact.deciding import gate_at
from ..adapters.artifact.files import read_inside, require_hashes
from ..adapters.errors import InvalidArtifact
from ..export.document.figures import attachment_name
from ..export.manifest import ExportManifest

M = TypeVar("M", bound=BaseModel)

RISK = "risk"
_LIMIT = 64 * 2**20
_OPEN = float(np.nextafter(0, 1))  # a gate is open above 0


@dataclass(frozen=True)
class Reference:
    """How something was spread over harmless calibration records.

    Attributes:
        what: ``risk``, or a gate as in :attr:`~.answer.Verdict.gates`.
        pictured: of prompts with pictures only, or of those without; None for all.
        edges: where one bin ends and the next begins; the outer ones are open.
        counts: [bins], one more than edges.
    """

    what: str
    pictured: bool | None
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def records(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def told(self) -> dict[str, Any]:
        """What it is of, for logs."""
        return {"what": self.what, "pictures": pictures_told(self.pictured), "records": self.records}


@dataclass(frozen=True)
class Window:
    """A window of prompts beside its reference.

    Attributes:
        distance: largest difference of the cumulative distributions, in [0, 1].
        limit: what sampling explains.
        alarm: whether it is more; ``changed``: other than in the window before.
    """

    reference: Reference
    distance: float
    limit: float
    alarm: bool
    changed: bool


class Drift:
    """Windows of prompts, each compared with the references.

    Args:
        window: prompts of a window.
        false_alarms: probability of any false alarm, for all references and windows together.
    """

    def __init__(self, references: Sequence[Reference], *, window: int, false_alarms: float) -> None:
        self._window, self._share = window, false_alarms / max(1, len(references)) / 2
        self._watched = [_Watched(one, np.zeros(len(one.counts), np.int64)) for one in references]

    def note(self, scores: Mapping[str, float], *, pictured: bool) -> list[Window]:
        """Count a prompt; the windows that it fills.

        Args:
            scores: the risk in log-odds, and gates; what is no number counts as the largest.
        """
        filled = []
        for one in self._watched:
            reference = one.reference
            if reference.what not in scores or reference.pictured not in (None, pictured):
                continue
            one.counts[np.searchsorted(reference.edges, scores[reference.what], side="right")] += 1
            if one.counts.sum() >= self._window:
                filled.append(one.filled(self._share))
        return filled


@dataclass
class _Watched:
    reference: Reference
    counts: Int[np.ndarray, " bins"]
    windows: int = 0
    alarm: bool = False

    def filled(self, share: float) -> Window:
        self.windows += 1
        known = np.asarray(self.reference.counts)
        distance = float(np.abs(_cumulative(self.counts) - _cumulative(known)).max())
        limit = reach(int(known.sum()), share) + reach(
            int(self.counts.sum()), share / (self.windows * (self.windows + 1))
        )
        found = Window(self.reference, distance, limit, distance > limit, (distance > limit) != self.alarm)
        self.alarm = found.alarm
        self.counts[:] = 0
        return found


def reach(n: int, share: float) -> float:
    """How far ``n`` draws lie from their distribution, but with a probability of at most ``share``."""
    return math.sqrt(math.log(2 / share) / (2 * n))


def _cumulative(counts: Int[np.ndarray, " bins"]) -> Float[np.ndarray, " bins"]:
    shares: np.ndarray = np.cumsum(counts) / counts.sum()
    return shares


def pictures_told(pictured: bool | None) -> str:
    """For labels: which prompts a reference is of."""
    return {None: "any", True: "some", False: "none"}[pictured]


class _Histogram(BaseModel):
    edges: tuple[float, ...]
    counts: dict[str, dict[str, tuple[int, ...]]]


class _Detector(BaseModel):
    """What of ``detector.json`` is read."""

    model_config = ConfigDict(extra="ignore")
    histogram: _Histogram


class _Calibrated(BaseModel):
    """What of a row of ``calibration.json`` is read."""

    model_config = ConfigDict(extra="ignore")
    what: str
    false_positive_rate: float | None = None


def references_of(folder: Path, manifest: ExportManifest) -> tuple[Reference, ...]:
    """What an export's own adapters said of harmless calibration records.

    The risk has its histogram where the fit kept one, and else the share above the threshold. Of gates those are there
    that decide by the prompt's last token.

    Raises:
        InvalidArtifact: a file is damaged.
    """
    found: list[Reference] = []
    for number, adapter in enumerate(manifest.adapters):
        records = sum(
            count
            for name, count in adapter.data.counts.items()
            if name.startswith("calibration/") and name.endswith("/harmless")
        )
        rates = _rates(folder, manifest, number) if records else {}
        detector = _read(folder, manifest, attachment_name("detector", number))
        if detector is not None:
            found += _risks(_validated(_Detector, detector, folder).histogram)
        elif manifest.detector is not None and (rate := rates.get("detector")) is not None:
            above = float(np.nextafter(np.float64(manifest.detector.threshold), np.inf))
            found.append(_share(RISK, above, rate, records))
        for item in manifest.interventions:
            prompt = item.phase == "prefill" and item.scope == "last" and "score" in item.extras
            if item.adapter == number and prompt and (rate := rates.get(gate_at(item.site))) is not None:
                found.append(_share(f"{item.index}.score", _OPEN, rate, records))
    return tuple(found)


def _rates(folder: Path, manifest: ExportManifest, number: int) -> dict[str, float]:
    rows = _read(folder, manifest, attachment_name("calibration", number))
    valid = [_validated(_Calibrated, row, folder) for row in (rows if isinstance(rows, list) else [])]
    return {row.what: row.false_positive_rate for row in valid if row.false_positive_rate is not None}


def _risks(histogram: _Histogram) -> Iterator[Reference]:
    edges = histogram.edges[1:-1]
    for pictured in (False, True):
        rows = [
            parts["harmless"]
            for carrier, parts in histogram.counts.items()
            if carrier != "all" and (carrier != "text") == pictured and len(parts.get("harmless", ())) == len(edges) + 1
        ]
        counts = tuple(int(sum(column)) for column in zip(*rows, strict=True))
        if sum(counts):
            yield Reference(RISK, pictured, edges, counts)


def _share(what: str, above: float, rate: float, records: int) -> Reference:
    over = round(rate * records)
    return Reference(what, None, (above,), (records - over, over))


def _read(folder: Path, manifest: ExportManifest, name: str) -> Any:
    if name not in manifest.files:
        return None
    require_hashes(folder, {name: manifest.files[name]})
    try:
        return json.loads(read_inside(folder, name, _LIMIT))
    except (ValueError, RecursionError):
        raise InvalidArtifact(f"{folder / name} is no JSON.", "Export the model again.") from None


def _validated(model: type[M], value: Any, folder: Path) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        what = ".".join(map(str, error.errors()[0]["loc"]))
        raise InvalidArtifact(
            f"What an adapter of {folder} says of its calibration is not valid: {what}.", "Export the model again."
        ) from None
