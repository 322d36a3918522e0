"""A linear probe as a calibrated log-odds of harm: logistic regression, folded into one weight and one bias.

    risk(h) = a (vᵀ A (h − μ) + c) + b = wᵀ h + β

Regression
    v, c minimise the class-balanced log-loss with an L2 penalty on v; the penalty's strength is the one with the
    lowest out-of-fold loss. Where the records name enough categories, a fold holds out whole ones (ours): requests
    about things that the other folds speak of too look easier than new ones, and a probe chosen and calibrated on them
    is far too sure of itself. Otherwise both labels of a pair are in the same fold.

Space (A, μ)
    ``logits``  the paper's (arXiv:2507.21637): z = W_U h, centred and divided by one scale. A record has as many
                logits as the vocabulary has tokens, but the best weight on them lies in the span of W_U's columns,
                so regression on z with an L2 penalty *is* regression on G^½ (h − μ), G = W_UᵀW_U, which is d_model
                wide. A bias of the head cancels in the centring.
    ``hidden``  each component of h divided by its own standard deviation (ours).

Calibration (Platt, 1999)
    a, b are a logistic regression of the labels on out-of-fold scores, with his smoothed targets; so risk is a
    log-odds at the fit records' share of harmful ones.

Threshold
    The (1 − r) quantile, never below it, of the risk of harmless calibration records, all carriers together: at most
    the share r of them lies above. Halfway to the next record's risk, so that no record sits on it and rounding
    cannot change a decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from ..errors import UsageError
from .choices import Space
from .regression import Regression, balanced
from .rows import Rows
from .threads import one_thread

STRENGTHS = tuple(10.0**power for power in np.arange(-4, 2.1, 0.5))  # sklearn's C: the inverse of the penalty
_UNSEARCHED = 0.01  # where there are too few records for folds
_FOLDS = 5
_GAP = 1e-3  # above the largest risk, where no record lies above it


@dataclass(frozen=True)
class Metric:
    """The linear map A of a space, without the data's mean and scale.

    Attributes:
        space: which.
        root: G^½ [d_model, d_model] for ``logits``, None for ``hidden``.
    """

    space: Space
    root: Float[np.ndarray, "d_model d_model"] | None = None

    @classmethod
    @one_thread()
    def of(cls, space: Space, head: Float[Tensor, "vocab d_model"] | None = None) -> Metric:
        """The metric of ``space``; ``logits`` needs the head's weight, read in blocks of rows."""
        if space == "hidden":
            return cls(space)
        if head is None:
            raise UsageError("Logits need the LM head's weight.", "Fit in hidden space instead.")
        gram = torch.zeros(head.shape[1], head.shape[1], dtype=torch.float64)
        for start in range(0, len(head), 8192):
            rows = head[start : start + 8192].double()
            gram += rows.T @ rows
        values, vectors = torch.linalg.eigh(gram)
        return cls(space, ((vectors * values.clamp_min(0).sqrt()) @ vectors.T).numpy())

    def map(self, states: Rows) -> tuple[np.ndarray, np.ndarray]:
        """A, as a matrix or a vector of its diagonal, and μ for these states."""
        mean = states.mean()
        if self.root is None:
            spread = np.sqrt(states.variance(mean))
            return 1 / np.where(spread > 1e-9 * spread.max(), spread, np.inf), mean
        square = sum(float(np.square((block - mean) @ self.root).sum()) for _, block in states.blocks())
        scale = np.sqrt(square / (states.shape[0] * states.shape[1]))
        return self.root / scale if scale > 0 else self.root, mean


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        weight, bias: risk = h · weight + bias, log-odds.
        strength: sklearn's C that was chosen.
        loss: class-balanced out-of-fold log-loss at it, before calibration; None where there was no fold.
        auroc: out-of-fold; None where there was no fold.
        out_of_fold: the scores these are of.
    """

    weight: Float[np.ndarray, " d_model"]
    bias: float
    strength: float
    loss: float | None
    auroc: float | None
    out_of_fold: Float[np.ndarray, " records"] | None

    def risk(self, states: Rows | Float[np.ndarray, "records d_model"]) -> Float[np.ndarray, " records"]:
        """Log-odds of harm in float64."""
        found: np.ndarray = states @ self.weight + self.bias
        return found

    def tensors(self) -> dict[str, Tensor]:
        """The parameters as an adapter stores them."""
        return {
            "weight": torch.tensor(self.weight, dtype=torch.float32),
            "bias": torch.tensor(self.bias, dtype=torch.float32),
        }


@one_thread()  # also faster: thousands of small products, for which threads only wait for each other
def fit_probe(
    states: Rows | Float[np.ndarray, "records d_model"],
    harmful: Bool[np.ndarray, " records"],
    groups: Int[np.ndarray, " records"],
    metric: Metric,
    seed: int = 0,
    *,
    strength: float | None = None,
) -> Probe:
    """Fit and calibrate.

    Args:
        groups: records with the same number are never on both sides of a cross-validation.
        strength: C of the penalty; by default the one of :data:`STRENGTHS` with the lowest out-of-fold loss.

    Raises:
        UsageError: a label is missing.
    """
    for label, there in (("harmful", harmful.any()), ("harmless", not harmful.all())):
        if not there:
            raise UsageError(f"There is no {label} record to fit the probe on.", "It needs both labels to learn from.")
    states = states if isinstance(states, Rows) else Rows(states)
    matrix, mean = metric.map(states)
    span = _span(states, matrix, mean)
    inputs, scale, centre = states, matrix, mean
    if span is not None:
        inputs = Rows(_apply(matrix, states.all() - mean) @ span.T)
        scale, centre = np.ones(len(span)), np.zeros(len(span))

    def regression(used: Sequence[np.ndarray]) -> Regression:
        weights = np.column_stack([balanced(harmful, _mask(rows, len(harmful))) for rows in used])
        return Regression(inputs, scale, centre, harmful, weights)

    folds = _folds(harmful, groups, seed)
    start = None
    if folds:
        tried = STRENGTHS if strength is None else (strength,)
        strength, scores, start = _search(regression([train for train, _ in folds]), folds, tried)
        slope, offset = _platt(scores, harmful)
        loss, area = balanced_loss(scores, harmful), auroc(scores, harmful)
    else:  # too few records to say anything out of fold
        strength = _UNSEARCHED if strength is None else strength
        scores, slope, offset, loss, area = None, 1.0, 0.0, None, None
    (found,) = regression([np.arange(len(harmful))]).solve(strength, 1e-8, start)
    direction, intercept = found[:-1] if span is None else found[:-1] @ span, float(found[-1])
    weight = slope * (matrix * direction if matrix.ndim == 1 else matrix.T @ direction)
    return Probe(weight, float(slope * intercept + offset - weight @ mean), strength, loss, area, scores)


def threshold_at(
    risk: Float[np.ndarray, " records"], harmful: Bool[np.ndarray, " records"], false_positive_rate: float
) -> float:
    """The threshold that at most this share of harmless records exceeds; see the module's docstring.

    Raises:
        UsageError: there is no harmless record.
    """
    if harmful.all():
        raise UsageError(
            "The calibration split holds no harmless record.", "Add some: the detector's threshold is set on them."
        )
    return between(risk, float(np.quantile(risk[~harmful], 1 - false_positive_rate, method="higher")))


def between(risk: Float[np.ndarray, " records"], highest: float) -> float:
    """The threshold halfway from the highest risk that is let through to the next one."""
    above = risk[risk > highest]
    return float((highest + above.min()) / 2 if len(above) else highest + _GAP)


def auroc(scores: Float[np.ndarray, " records"], harmful: Bool[np.ndarray, " records"]) -> float | None:
    """Area under the ROC curve; None where a label is missing."""
    from sklearn.metrics import roc_auc_score

    if harmful.all() or not harmful.any():
        return None
    return float(roc_auc_score(harmful, scores))


def balanced_loss(scores: Float[np.ndarray, " records"], harmful: Bool[np.ndarray, " records"]) -> float:
    """Mean log-loss in nats, both labels weighing the same."""
    losses = _losses(scores, harmful)
    return float((losses[harmful].mean() + losses[~harmful].mean()) / 2)


def standard_error(scores: Float[np.ndarray, " records"], harmful: Bool[np.ndarray, " records"]) -> float:
    """Of :func:`balanced_loss`."""
    losses = _losses(scores, harmful)
    parts = [losses[rows].var() / rows.sum() for rows in (harmful, ~harmful)]
    return float(np.sqrt(sum(parts)) / 2)


def _losses(scores: np.ndarray, harmful: np.ndarray) -> np.ndarray:
    losses: np.ndarray = np.logaddexp(0, np.where(harmful, -scores, scores))
    return losses


def _apply(matrix: np.ndarray, centred: np.ndarray) -> np.ndarray:
    mapped: np.ndarray = centred * matrix if matrix.ndim == 1 else centred @ matrix.T
    return mapped


def _mask(rows: np.ndarray, count: int) -> np.ndarray:
    mask = np.zeros(count, bool)
    mask[rows] = True
    return mask


def _span(states: Rows, matrix: np.ndarray, mean: np.ndarray) -> np.ndarray | None:
    """Orthonormal rows that span the records, where the solution lies, if they are fewer than the dimensions."""
    if len(states) >= states.shape[1]:
        return None
    _, values, basis = np.linalg.svd(_apply(matrix, states.all() - mean), full_matrices=False)
    kept = values > values[0] * 1e-12
    kept[0] = True  # of records that are all the same nothing is left; regression wants a dimension all the same
    span: np.ndarray = basis[kept]
    return span


def _folds(harmful: np.ndarray, groups: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Train and held-out rows; none where a label has fewer than two groups."""
    count = min(_FOLDS, len(set(groups[harmful])), len(set(groups[~harmful])))
    if count < 2:
        return []
    folds = _split(harmful.tobytes(), groups.astype(np.int64).tobytes(), count, seed)
    return folds if all(0 < harmful[train].sum() < len(train) for train, _ in folds) else []


@lru_cache(maxsize=32)  # one after the other, many places are fitted on the same records
def _split(harmful: bytes, groups: bytes, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    labels = np.frombuffer(harmful, bool)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    return list(splitter.split(labels, labels, np.frombuffer(groups, np.int64)))


def _search(
    regression: Regression, folds: list[tuple[np.ndarray, np.ndarray]], strengths: Sequence[float]
) -> tuple[float, np.ndarray, np.ndarray]:
    """The penalty with the lowest out-of-fold loss, the scores at it, and where to start with all records; from
    strong to weak, until the loss rises."""
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    lowest, solved = np.inf, None
    for strength in strengths:
        solved = regression.solve(strength, 1e-4, solved)
        all_scores = regression.scores(solved)
        scores = np.empty(len(all_scores))
        for fold, (_, held_out) in enumerate(folds):
            scores[held_out] = all_scores[held_out, fold]
        loss = balanced_loss(scores, regression.harmful)
        if best is not None and loss >= lowest:
            break
        best, lowest = (strength, scores, solved.mean(0, keepdims=True)), loss
    assert best is not None
    return best


def _platt(scores: np.ndarray, harmful: np.ndarray) -> tuple[float, float]:
    """a and b; a is kept positive, so that calibration never turns a probe around."""
    positives, negatives = harmful.sum(), (~harmful).sum()
    target = np.where(harmful, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    # A soft target t is a harmful record of weight t and a harmless one of weight 1 − t.
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, max_iter=200)
    labels = np.repeat([True, False], len(scores))
    model.fit(np.tile(scores, 2)[:, None], labels, sample_weight=np.concatenate([target, 1 - target]))
    slope = float(model.coef_[0, 0])
    if slope <= 0:
        return 1e-3, float(np.log((positives + 1) / (negatives + 1)))
    return slope, float(model.intercept_[0])
