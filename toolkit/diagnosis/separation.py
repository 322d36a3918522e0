"""How far apart harmful and harmless records lie, layer by layer, at the last prompt position.

- ``silhouette``: mean of (b − a) / max(a, b), a and b the mean distances to the own and the other class [paper: CARE].
- ``class separation``: tr(S_b) / tr(S_w), Fisher's ratio of the scatter between and within the classes [paper: CARE].
- ``mahalanobis``: √(Δᵀ Σ⁻¹ Δ), Δ between the class means, Σ the pooled covariance within the classes, shrunk as by
  Ledoit and Wolf (2004) [paper: CARE; the shrinkage is ours]. Computed on the records that gave Σ, so it flatters.
- ``probe AUROC``: logistic regression, scores out of fold over five folds; the records of a pair stay in one fold, so
  that wording seen in training does not help [ours].
- ``transfer AUROC``: the probe fitted on text, scoring pictures [ours].

Intervals resample the records (for silhouette and AUROC, their given values and scores); the other two have none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import silhouette_samples
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ..data.records import Record
from .intervals import estimate_auroc, estimate_mean
from .states import LayerStates
from .terms import Curve

FOLDS = 5


@dataclass(frozen=True)
class _Task:
    """Records of one kind and their classes."""

    name: str
    states: LayerStates
    harmful: Bool[np.ndarray, " records"]
    groups: list[str]

    @classmethod
    def of(cls, name: str, states: LayerStates) -> _Task:
        return cls(name, states, states.harmful, [pair_key(record) for record in states.records])

    @property
    def usable(self) -> bool:
        """Whether there are enough of both classes for the folds."""
        return min(self.harmful.sum(), (~self.harmful).sum()) >= 2 * FOLDS


def pair_key(record: Record) -> str:
    """The same for both records of a pair."""
    return min(record.id, record.pair or record.id)


def separation(states: LayerStates, seed: int) -> list[Curve]:
    """Every measure for text and for picture records; those with too few records of a class are left out."""
    text = _Task.of("text", states.where(lambda record: not record.pictured))
    pictures = _Task.of("pictures", states.where(lambda record: record.pictured))
    curves = []
    for task in (text, pictures):
        if task.usable:
            curves += _measures(task, seed)
    if text.usable and pictures.usable:
        curves.append(_transfer(text, pictures, seed))
    return curves


def _measures(task: _Task, seed: int) -> list[Curve]:
    depth = task.states.last.shape[1] - 1
    silhouettes, ratios, distances, areas = [], [], [], []
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    parts = list(folds.split(task.harmful, task.harmful, task.groups))  # the same in all layers
    for layer in range(depth):
        x = task.states.last[:, layer + 1].astype(np.float64)
        silhouettes.append(estimate_mean(silhouette_samples(x, task.harmful), seed))
        ratios.append(class_separation(x, task.harmful))
        distances.append(mahalanobis(x, task.harmful))
        scores = cross_val_predict(_probe(), x, task.harmful, cv=parts, method="decision_function")
        areas.append(estimate_auroc(scores, task.harmful, seed))
    return [
        Curve.of("silhouette", task.name, silhouettes),
        Curve(measure="class separation", records=task.name, values=tuple(ratios)),
        Curve(measure="mahalanobis", records=task.name, values=tuple(distances)),
        Curve.of("probe AUROC", task.name, areas),
    ]


def _transfer(text: _Task, pictures: _Task, seed: int) -> Curve:
    areas = []
    for layer in range(1, text.states.last.shape[1]):
        probe = _probe().fit(text.states.last[:, layer], text.harmful)
        areas.append(estimate_auroc(probe.decision_function(pictures.states.last[:, layer]), pictures.harmful, seed))
    return Curve.of("transfer AUROC", "text to pictures", areas)


def class_separation(x: Float[np.ndarray, "n d"], positive: Bool[np.ndarray, " n"]) -> float:
    """tr(S_b) / tr(S_w)."""
    centre = x.mean(0)
    parts = [x[positive], x[~positive]]
    between = sum(len(part) * ((part.mean(0) - centre) ** 2).sum() for part in parts)
    within = sum(((part - part.mean(0)) ** 2).sum() for part in parts)
    return float(between / within) if within else 0.0


def mahalanobis(x: Float[np.ndarray, "n d"], positive: Bool[np.ndarray, " n"]) -> float:
    """Distance between the class means under the shrunk covariance within the classes."""
    gap = x[positive].mean(0) - x[~positive].mean(0)
    centred = np.concatenate([x[positive] - x[positive].mean(0), x[~positive] - x[~positive].mean(0)])
    covariance = LedoitWolf(assume_centered=True).fit(centred).covariance_
    return float(np.sqrt(gap @ np.linalg.lstsq(covariance, gap, rcond=None)[0]))


def _probe():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
