"""How far two results are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_PIECE = 2**22  # numbers that are compared at once


@dataclass(frozen=True)
class Gap:
    """How far two results are apart.

    Attributes:
        error: largest absolute difference; NaN if either result holds one.
        scale: largest magnitude of the reference.
        count: numbers compared.
    """

    error: float
    scale: float
    count: int

    @classmethod
    def between(cls, reference: np.ndarray, other: np.ndarray) -> Gap:
        """Compare two arrays of one shape; equal infinities count as equal."""
        error = scale = 0.0
        left, right = reference.reshape(-1), np.broadcast_to(other, reference.shape).reshape(-1)
        for start in range(0, reference.size, _PIECE):
            one, two = (array[start : start + _PIECE].astype(np.float64) for array in (left, right))
            with np.errstate(invalid="ignore"):
                difference = np.where(one == two, 0.0, np.abs(one - two))
            error = float(np.maximum(error, difference.max()))  # NaN wins
            scale = max(scale, float(np.abs(np.where(np.isfinite(one), one, 0)).max()))
        return cls(error, scale, reference.size)

    def relative(self) -> Gap:
        """The error as a share of the scale."""
        return Gap(self.error / self.scale if self.scale else self.error, 1.0, self.count)

    def at_least(self, scale: float) -> Gap:
        """The same with a scale of at least ``scale``."""
        return Gap(self.error, max(scale, self.scale), self.count)

    def join(self, other: Gap) -> Gap:
        """The larger of both."""
        error = float(np.maximum(self.error, other.error))  # NaN wins
        return Gap(error, max(self.scale, other.scale), self.count + other.count)
