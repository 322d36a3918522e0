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
        furthest: the two numbers that are furthest apart, the reference's first, and what their difference is a share
            of; None where the error is no difference of two numbers.
    """

    error: float
    scale: float
    count: int
    furthest: tuple[float, float, float] | None = None

    @classmethod
    def between(cls, reference: np.ndarray, other: np.ndarray) -> Gap:
        """Compare two arrays of one shape; equal infinities count as equal."""
        error = scale = 0.0
        furthest: tuple[float, float, float] | None = None
        left, right = reference.reshape(-1), np.broadcast_to(other, reference.shape).reshape(-1)
        for start in range(0, reference.size, _PIECE):
            one, two = (array[start : start + _PIECE].astype(np.float64) for array in (left, right))
            with np.errstate(invalid="ignore"):
                difference = np.where(one == two, 0.0, np.abs(one - two))
            at = int(difference.argmax())  # NaN wins, and stays
            if difference[at] > error or np.isnan(difference[at]):
                error, furthest = float(difference[at]), (float(one[at]), float(two[at]), 1.0)
            scale = max(scale, float(np.abs(np.where(np.isfinite(one), one, 0)).max()))
        return cls(error, scale, reference.size, furthest)

    def relative(self) -> Gap:
        """The error as a share of the scale."""
        if not self.scale:
            return Gap(self.error, 1.0, self.count, self.furthest)
        furthest = self.furthest and (*self.furthest[:2], self.furthest[2] * self.scale)
        return Gap(self.error / self.scale, 1.0, self.count, furthest)

    def at_least(self, scale: float) -> Gap:
        """The same with a scale of at least ``scale``."""
        return Gap(self.error, max(scale, self.scale), self.count, self.furthest)

    def join(self, other: Gap) -> Gap:
        """The larger of both."""
        larger = self if self.error >= other.error or np.isnan(self.error) else other  # NaN wins
        return Gap(larger.error, max(self.scale, other.scale), self.count + other.count, larger.furthest)
