"""Whether what a detector and gates say in production is still what they said in their calibration.

An export holds how the risks of its harmless calibration records are spread, with and without pictures, and how often
each gate opened for them. A server compares every window of its own prompts with that, value by value: the share of
prompts above it with the share of the records. By Chernoff's inequality the share ``s`` among n independent draws, of a
true share ``p``, has ``n kl(s, p) > ln(2 / a)`` with a probability of at most ``a``, where ``kl(s, p) = s ln(s / p) +
(1 - s) ln((1 - s) / (1 - p))``. What shares are left is an interval, narrow where shares are small, as above a
detector's threshold. Where the intervals of calibration and window do not meet, sampling does not explain it.

``a`` is spent once: each of r references gets ``false_alarms / r`` and each of its values an equal part of that, half
of it for the calibration, and of the other half window k gets 1 / k(k+1). So the probability of *any* false alarm,
however long the server runs, is at most ``false_alarms``, as long as prompts are independent of each other.
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
from pydantic import BaseModel, ValidationError

from ..adapters.artifact.deciding import gate_at
from ..adapters.artifact.files import read_inside, require_hashes
from ..adapters.errors import InvalidArtifact
from ..export.manifest import ExportManifest, attachment_name

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
        above: the value at which they lie furthest apart.
        share: of the window's prompts above it; ``expected``: of the calibration's records.
        unexplained: how far apart the intervals of both are; what is not above 0, sampling explains.
        changed: there was an alarm in the window before and is none now, or the other way round.
    """

    reference: Reference
    above: float
    share: float
    expected: float
    unexplained: float
    changed: bool

    @property
    def alarm(self) -> bool:
        """Whether it is more than sampling explains."""
        return self.unexplained > 0


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


def least_window(references: Sequence[Reference], false_alarms: float) -> int | None:
    """The smallest first window that can raise an alarm, if all or none of its prompts lie above some value.

    Of a reference whose calibration leaves the shares from ``low`` to ``high``, all of n prompts do it where
    ``high ** n < a / 2``, none of them where ``(1 - low) ** n < a / 2``.

    Args:
        false_alarms: see :class:`Drift`.

    Returns:
        None where no window can.
    """
    found: list[int] = []
    for one in references:
        each = false_alarms / len(references) / 2 / len(one.edges)
        low, high = within(_above(np.asarray(one.counts)), one.records, each)
        with np.errstate(divide="ignore"):
            rates = -np.log(np.stack([high, 1 - low]))  # in nats a prompt
        if (best := float(rates.max())) > 0:
            found.append(int(math.log(2 / (each / 2)) / best) + 1)
    return min(found, default=None)


@dataclass
class _Watched:
    reference: Reference
    counts: Int[np.ndarray, " bins"]
    windows: int = 0
    alarm: bool = False

    def filled(self, share: float) -> Window:
        self.windows += 1
        reference, each = self.reference, share / len(self.reference.edges)
        known, now = _above(np.asarray(reference.counts)), _above(self.counts)
        low, high = within(known, reference.records, each)
        now_low, now_high = within(now, int(self.counts.sum()), each / (self.windows * (self.windows + 1)))
        apart = np.maximum(now_low - high, low - now_high)
        at = int(apart.argmax())
        shares = float(reference.edges[at]), float(now[at]), float(known[at]), float(apart[at])
        found = Window(reference, *shares, changed=bool(apart[at] > 0) != self.alarm)
        self.alarm = found.alarm
        self.counts[:] = 0
        return found


def within(shares: Float[np.ndarray, " edges"], n: int, probability: float) -> tuple[np.ndarray, np.ndarray]:
    """Between which true shares ``shares`` of n draws lie, but with a probability of at most ``probability`` each."""
    most = math.log(2 / probability) / n
    low, high = np.zeros_like(shares), np.ones_like(shares)
    inner_low, inner_high = shares.copy(), shares.copy()  # which are possible
    for _ in range(50):
        middle = (low + inner_low) / 2
        possible = _divergence(shares, middle) <= most
        low, inner_low = np.where(possible, low, middle), np.where(possible, middle, inner_low)
        middle = (high + inner_high) / 2
        possible = _divergence(shares, middle) <= most
        high, inner_high = np.where(possible, high, middle), np.where(possible, middle, inner_high)
    return low, high


def _divergence(shares: Float[np.ndarray, " edges"], true: Float[np.ndarray, " edges"]) -> Float[np.ndarray, " edges"]:
    """Kullback-Leibler's, of one Bernoulli distribution from another."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [
            np.where(one > 0, one * np.log(one / other), 0.0) for one, other in ((shares, true), (1 - shares, 1 - true))
        ]
    found: np.ndarray = terms[0] + terms[1]
    return found


def _above(counts: Int[np.ndarray, " bins"]) -> Float[np.ndarray, " edges"]:
    """The share above each edge."""
    shares: np.ndarray = np.cumsum(counts[::-1])[::-1][1:] / counts.sum()
    return shares


def pictures_told(pictured: bool | None) -> str:
    """For labels: which prompts a reference is of."""
    return {None: "any", True: "some", False: "none"}[pictured]


class _Histogram(BaseModel):
    edges: tuple[float, ...]
    counts: dict[str, dict[str, tuple[int, ...]]]


class _Detector(BaseModel):
    """What of ``detector.json`` is read."""

    histogram: _Histogram


class _Calibrated(BaseModel):
    """What of a row of ``calibration.json`` is read."""

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
