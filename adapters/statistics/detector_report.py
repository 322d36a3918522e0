"""Choosing, fitting and describing a detector on cached states; no model is run.

The attachment ``detector`` (JSON). Places are written ``{"safety": s, "fused": f}`` for a second pass,
``{"safety": null, "fused": f}`` for the normal pass after block f, with ``"beside": [earlier blocks]`` where several
are read, and with all null for the final norm of the normal pass. All figures are of calibration records unless said
otherwise; recall is the share of harmful records refused at a threshold set for ``false_positive_rate`` on harmless
ones. A figure is null where a label is missing::

    false_positive_rate, threshold: numbers (threshold in log-odds)
    place: the chosen one
    out_of_fold: {loss, auroc} on fit records; whole categories (or else pairs) were held out
    curves: {carrier or "all": {harmful, harmless (counts), auroc, average_precision,
             roc: [[false-positive rate, recall], …], precision_recall: [[recall, precision], …]}}; ≤ 200 points each
    histogram: {edges: [n+1 risks], counts: {carrier: {harmful: [n], harmless: [n]}}}; the outer bins are open
    layers: [{safety, fused, loss, auroc (out of fold), calibration_loss, calibration_auroc, recall}]
        the places tried, on the records that ``tried_on`` counts
    tried_on: {fit, calibration}; null where no place was chosen, and the row of ``layers`` is of all records
    learning_curve: [{fraction, records, draws, auroc: {mean, low, high}, recall: {mean, low, high}}]
    left_out: [{kind: "category" | "carrier", name, harmful, harmless (counts), auroc, recall, false_positive_rate}]
        fitted and thresholded without the category or carrier, measured on it: a category's harmful records against
        all harmless ones, a carrier's records against each other; false positives are those of the left-out kind
    budgeted: true where the threshold keeps a budget, and calibration records chose nothing else
    comparison: [{detector: "projected" | "unprojected" | "one-pass" | "multi-layer", safety, fused, loss,
        auroc (out of fold), calibration_auroc, recall}]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from ..artifact.sites import Site
from ..protocols import Blocks, Place
from .detector import Features
from .probe import Metric, Probe, auroc, fit_probe, standard_error, threshold_at

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_DRAWS = 3
_POINTS, _BINS = 200, 40


@dataclass(frozen=True)
class Fitted:
    """A probe at its place with its threshold."""

    place: Place
    probe: Probe
    threshold: float

    def risk(self, features: Features) -> Float[np.ndarray, " records"]:
        """Log-odds of harm."""
        return self.probe.risk(features.rows(self.place))

    def measured(self, features: Features) -> dict[str, float | None]:
        """AUROC, and the shares above the threshold of either label."""
        risk, harmful = self.risk(features), features.harmful
        return {
            "auroc": auroc(risk, harmful),
            "recall": _share(risk[harmful] > self.threshold),
            "false_positive_rate": _share(risk[~harmful] > self.threshold),
        }


@dataclass(frozen=True)
class Detector:
    """How detectors of one kind are fitted.

    Attributes:
        metric: the space of the probe's penalty.
        false_positive_rate: of harmless calibration records.
        seed: of the folds.
    """

    metric: Metric
    false_positive_rate: float
    seed: int = 0

    def probe(self, place: Place, fit: Features, strength: float | None = None) -> Probe:
        """The probe alone; ``strength`` is the penalty's, searched for by default."""
        probe: Probe = fit_probe(fit.rows(place), fit.harmful, fit.groups, self.metric, self.seed, strength=strength)
        return probe

    def fit(self, place: Place, fit: Features, calibration: Features, strength: float | None = None) -> Fitted:
        """Fit on one split and set the threshold on the other.

        Raises:
            UsageError: a label is missing.
        """
        probe = self.probe(place, fit, strength)
        risk = probe.risk(calibration.rows(place))
        return Fitted(place, probe, threshold_at(risk, calibration.harmful, self.false_positive_rate))


def preferred(found: Sequence[Fitted], calibration_losses: Sequence[float], harmful: np.ndarray) -> int:
    """Which of some fitted places to take.

    Of those whose out-of-fold loss lies within one standard error of the lowest, the one with the lowest loss on
    calibration records; without folds, the calibration records alone decide.

    Args:
        harmful: [fit records], their labels.
    """
    losses = [item.probe.loss for item in found if item.probe.loss is not None]
    near = list(range(len(found)))
    if len(losses) == len(found):
        best = int(np.argmin(losses))
        scores = found[best].probe.out_of_fold
        assert scores is not None  # as the loss, which is theirs
        limit = losses[best] + standard_error(scores, harmful)
        near = [at for at in near if losses[at] <= limit]
    return min(near, key=lambda at: calibration_losses[at])


def row_of(item: Fitted, calibration: Features) -> dict[str, Any]:
    """One fitted place as a table row."""
    measured = item.measured(calibration)
    return {
        **place_json(item.place),
        "loss": item.probe.loss,
        "auroc": item.probe.auroc,
        "calibration_auroc": measured["auroc"],
        "recall": measured["recall"],
    }


def place_json(place: Place) -> dict[str, Any]:
    """A place as the module's docstring writes it."""
    if isinstance(place, Blocks):
        return {"safety": None, "fused": place.layers[-1], "beside": list(place.layers[:-1])}
    if isinstance(place, tuple):
        return {"safety": place[0], "fused": place[1]}
    return {"safety": None, "fused": place.layer}


def describe(
    detector: Detector,
    chosen: Fitted,
    table: list[dict[str, Any]],
    part: dict[str, int] | None,
    fit: Features,
    calibration: Features,
) -> dict[str, Any]:
    """The attachment ``detector``; see the module's docstring."""
    risk = chosen.risk(calibration)
    carriers = sorted({record.carrier for record in calibration.records})
    parts = {"all": np.ones(len(risk), bool)} | {
        carrier: np.array([record.carrier == carrier for record in calibration.records]) for carrier in carriers
    }
    return {
        "false_positive_rate": detector.false_positive_rate,
        "threshold": chosen.threshold,
        "place": place_json(chosen.place),
        "out_of_fold": {"loss": chosen.probe.loss, "auroc": chosen.probe.auroc},
        "curves": {name: curves(risk[rows], calibration.harmful[rows]) for name, rows in parts.items()},
        "histogram": histogram(risk, calibration.harmful, {name: parts[name] for name in carriers}),
        "layers": table,
        "tried_on": part,
        "learning_curve": learning_curve(detector, chosen, fit, calibration),
        "left_out": left_out(detector, chosen.place, fit, calibration, calibration),
        "comparison": comparison(detector, chosen, fit, calibration),
    }


def curves(risk: np.ndarray, harmful: np.ndarray) -> dict[str, Any]:
    """ROC and precision–recall points, thinned evenly."""
    found: dict[str, Any] = {
        "harmful": int(harmful.sum()),
        "harmless": int((~harmful).sum()),
        "auroc": auroc(risk, harmful),
        "average_precision": None,
        "roc": [],
        "precision_recall": [],
    }
    if found["auroc"] is None:
        return found
    false_positives, recall, _ = roc_curve(harmful, risk)
    precision, at_recall, _ = precision_recall_curve(harmful, risk)
    found["average_precision"] = float(average_precision_score(harmful, risk))
    found["roc"] = _thinned(false_positives, recall)
    found["precision_recall"] = _thinned(at_recall[::-1], precision[::-1])
    return found


def histogram(risk: np.ndarray, harmful: np.ndarray, parts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Counts per carrier and label over bins that hold the middle 98 % of all risks."""
    low, high = np.quantile(risk, [0.01, 0.99])
    edges = np.linspace(low, max(high, low + 1e-6), _BINS + 1)
    inside = np.clip(risk, edges[0], edges[-1])
    counts = {
        carrier: {
            label: np.histogram(inside[rows & (harmful == (label == "harmful"))], edges)[0].tolist()
            for label in ("harmful", "harmless")
        }
        for carrier, rows in parts.items()
    }
    return {"edges": edges.tolist(), "counts": counts}


def learning_curve(detector: Detector, chosen: Fitted, fit: Features, calibration: Features) -> list[dict[str, Any]]:
    """Shares of the fit records, several draws each; place and penalty stay those chosen on all of them."""
    place, strength = chosen.place, chosen.probe.strength
    rows = []
    for fraction in FRACTIONS:
        draws = [fit] if fraction == 1 else [fit.sample(fraction, detector.seed + draw) for draw in range(_DRAWS)]
        found = [chosen if part is fit else detector.fit(place, part, calibration, strength) for part in draws]
        measured = [item.measured(calibration) for item in found]
        row: dict[str, Any] = {"fraction": fraction, "records": len(draws[0].records), "draws": len(draws)}
        for name in ("auroc", "recall"):
            values = [value for item in measured if (value := item[name]) is not None]
            row[name] = {"mean": float(np.mean(values)), "low": min(values), "high": max(values)}
        rows.append(row)
    return rows


def left_out(
    detector: Detector, place: Place, fit: Features, calibration: Features, measured: Features
) -> list[dict[str, Any]]:
    """Zero-shot figures: each category of harmful records, and each carrier, left out of fit and threshold.

    Args:
        measured: the records whose left-out part is measured.
    """
    rows = []
    for kind in ("category", "carrier"):
        names = {getattr(record, kind) for record in measured.records if record.label == "harmful"} - {""}
        for name in sorted(names):
            parts = [part.take(_is(part, kind, name, False)) for part in (fit, calibration)]
            if parts[0].harmful.all() or not parts[0].harmful.any() or parts[1].harmful.all():
                continue  # nothing is left to fit on
            fitted = detector.fit(place, parts[0], parts[1])
            mine = _is(measured, kind, name, True)
            against = mine if kind == "carrier" else mine | ~measured.harmful
            own = fitted.measured(measured.take(mine))
            rows.append(
                {
                    "kind": kind,
                    "name": name,
                    "harmful": int((measured.harmful & mine).sum()),
                    "harmless": int((~measured.harmful & mine).sum()),
                    **own,
                    "auroc": fitted.measured(measured.take(against))["auroc"],
                }
            )
    return rows


def comparison(detector: Detector, chosen: Fitted, fit: Features, calibration: Features) -> list[dict[str, Any]]:
    """The chosen detector beside the two it must beat, as far as their states were read."""
    others: list[tuple[str, Place]] = [("unprojected", Site("final_norm"))]
    if isinstance(chosen.place, tuple):
        others.append(("one-pass", Site.block(chosen.place[1])))
    if isinstance(chosen.place, Blocks):
        others += [("one-pass", site) for site in chosen.place.sites]
    rows = [{"detector": kind_of(chosen.place), **row_of(chosen, calibration)}]
    for name, place in others:
        if place in fit.states and place != chosen.place:
            rows.append({"detector": name, **row_of(detector.fit(place, fit, calibration), calibration)})
    return rows


def kind_of(place: Place) -> str:
    """What a detector at this place is called in a comparison."""
    if isinstance(place, tuple):
        return "projected"
    if isinstance(place, Blocks):
        return "multi-layer"
    return "one-pass" if place.kind == "block" else "unprojected"


def _is(features: Features, kind: str, name: str, wanted: bool) -> np.ndarray:
    return np.array([(getattr(record, kind) == name) == wanted for record in features.records], bool)


def _share(hits: np.ndarray) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _thinned(xs: np.ndarray, ys: np.ndarray) -> list[list[float]]:
    """At most ``_POINTS`` points, the first and the last among them."""
    keep = np.unique(np.linspace(0, len(xs) - 1, min(len(xs), _POINTS)).round().astype(int))
    return [[float(xs[at]), float(ys[at])] for at in keep]
