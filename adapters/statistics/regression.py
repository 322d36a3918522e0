"""Logistic regression on states that are read in blocks: several labellings of the same states at once.

    min over v, c of  1/S Σ_i w_i log(1 + exp(−y_i (vᵀ A (h_i − μ) + c))) + ‖v‖² / (2 C S),   S = Σ_i w_i, y_i = ±1

The folds of a cross-validation differ in their weights w alone (0 for what is held out), so they are solved together
by L-BFGS, and one reading of the states serves all of them. A and μ are folded into v and c: no state is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.optimize
from jaxtyping import Bool, Float
from scipy.special import expit

from .rows import Rows

_ITERATIONS = 5000
_STALLED = 64 * np.finfo(float).eps  # of the loss, relative; as scikit-learn has it


@dataclass(frozen=True)
class Regression:
    """What is regressed on what.

    Attributes:
        states: the h.
        matrix: A, or a vector of its diagonal.
        mean: μ.
        harmful: y.
        weights: w, a column for each fold.
    """

    states: Rows
    matrix: np.ndarray
    mean: Float[np.ndarray, " d_model"]
    harmful: Bool[np.ndarray, " records"]
    weights: Float[np.ndarray, "records folds"]

    def solve(
        self, strength: float, tolerance: float, start: Float[np.ndarray, "folds inputs"] | None = None
    ) -> Float[np.ndarray, "folds inputs"]:
        """v and, last, c of each fold.

        Args:
            strength: C, the inverse of the penalty.
            tolerance: of the gradient's components.
            start: where to begin.
        """
        shape = (self.weights.shape[1], len(self.matrix) + 1)
        begin = np.zeros(shape) if start is None else start
        found = scipy.optimize.minimize(
            lambda flat: self._loss(flat.reshape(shape), strength),
            begin.ravel(),
            method="L-BFGS-B",
            jac=True,
            options={"maxiter": _ITERATIONS, "maxls": 50, "gtol": tolerance, "ftol": _STALLED},
        )
        solved: np.ndarray = found.x.reshape(shape)
        return solved

    def scores(self, solved: Float[np.ndarray, "folds inputs"]) -> Float[np.ndarray, "records folds"]:
        """vᵀ A (h − μ) + c of every record."""
        weight, offset = self._folded(solved)
        found: np.ndarray = self.states @ weight + offset
        return found

    def _folded(self, solved: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        directions = solved[:, :-1].T
        weight = self.matrix[:, None] * directions if self.matrix.ndim == 1 else self.matrix.T @ directions
        return weight, solved[:, -1] - self.mean @ weight

    def _loss(self, solved: np.ndarray, strength: float) -> tuple[float, np.ndarray]:
        weight, offset = self._folded(solved)
        total = self.weights.sum(0)
        loss, slopes, sums = 0.0, np.zeros_like(weight), np.zeros(len(total))
        for rows, block in self.states.blocks():
            scores, harmful, shares = block @ weight + offset, self.harmful[rows, None], self.weights[rows] / total
            loss += float((shares * np.logaddexp(0, np.where(harmful, -scores, scores))).sum())
            residual = shares * (expit(scores) - harmful)
            slopes += block.T @ residual
            sums += residual.sum(0)
        slopes -= np.outer(self.mean, sums)
        slopes = self.matrix[:, None] * slopes if self.matrix.ndim == 1 else self.matrix @ slopes
        directions = solved[:, :-1]
        penalty = 1 / (strength * total)
        loss += float((penalty * np.square(directions).sum(1)).sum() / 2)
        return loss, np.column_stack([slopes.T + penalty[:, None] * directions, sums]).ravel()


def balanced(
    harmful: Bool[np.ndarray, " records"], used: Bool[np.ndarray, " records"]
) -> Float[np.ndarray, " records"]:
    """Weights by which both labels count the same among the records that are ``used``, 0 for the others."""
    weights = np.zeros(len(harmful))
    for label in (harmful, ~harmful):
        weights[used & label] = used.sum() / (2 * (used & label).sum())
    return weights
