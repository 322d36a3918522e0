"""Streaming statistics: one pass, O(d²) memory, mergeable, whatever the number of records."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import UsageError
from .choices import Shrinkage
from .threads import one_thread


class Mean:
    """Count and sum of a stream of vectors, in float64: O(d) memory.

    Attributes:
        count: number of vectors seen.
        total: [d_model].
    """

    def __init__(self, d_model: int) -> None:
        self.count = 0
        self.total = torch.zeros(d_model, dtype=torch.float64)

    @one_thread(blas=False)
    def update(self, states: Float[Tensor, "batch d_model"]) -> None:
        """Add a batch of vectors."""
        self.total = self.total + states.to("cpu", torch.float64).sum(0)
        self.count += len(states)

    def merge(self, other: Mean) -> None:
        """Add what another stream has seen."""
        self.total, self.count = self.total + other.total, self.count + other.count

    @property
    def value(self) -> Float[Tensor, " d_model"]:
        """The mean; some vector must have been seen."""
        return self.total / self.count


class Moments:
    """Count, mean, scatter and two contracted higher moments of a stream of vectors, in float64.

    Batches are combined by the pairwise update of Chan, Golub and LeVeque (1983), which does not
    cancel when the mean is large compared with the spread, as it is for hidden states. With y = x − mean:

    Attributes:
        count: number of vectors seen.
        mean: [d_model].
        scatter: [d_model, d_model], Σ y yᵀ.
        cubic: [d_model], Σ ‖y‖² y.
        quartic: Σ ‖y‖⁴, what the shrinkage of a covariance needs beside the scatter.
    """

    def __init__(self, d_model: int) -> None:
        self.count = 0
        self.mean = torch.zeros(d_model, dtype=torch.float64)
        self.scatter = torch.zeros(d_model, d_model, dtype=torch.float64)
        self.cubic = torch.zeros(d_model, dtype=torch.float64)
        self.quartic = 0.0

    @one_thread(blas=False)
    def update(self, states: Float[Tensor, "batch d_model"]) -> None:
        """Add a batch of vectors."""
        if not len(states):
            return
        other = Moments(self.mean.shape[0])
        states = states.to("cpu", torch.float64)
        other.count = len(states)
        other.mean = states.mean(0)
        centred = states - other.mean
        other.scatter = centred.T @ centred
        squares = centred.square().sum(1)
        other.cubic = squares @ centred
        other.quartic = float(squares @ squares)
        self.merge(other)

    def merge(self, other: Moments) -> None:
        """Add what another stream has seen."""
        if not other.count:
            return
        total = self.count + other.count
        gap = other.mean - self.mean
        mine, theirs = self._about(gap * (other.count / total)), other._about(gap * (-self.count / total))
        self.cubic, self.quartic = mine[0] + theirs[0], mine[1] + theirs[1]
        self.scatter += other.scatter + torch.outer(gap, gap) * (self.count * other.count / total)
        self.mean = self.mean + gap * (other.count / total)
        self.count = total

    def _about(self, shift: Float[Tensor, " d_model"]) -> tuple[Float[Tensor, " d_model"], float]:
        """``cubic`` and ``quartic`` about mean + shift: y − shift put in and expanded, where Σ y = 0."""
        trace, square, turned = self.scatter.trace(), shift @ shift, self.scatter @ shift
        cubic = self.cubic - 2 * turned - (trace + self.count * square) * shift
        quartic = self.quartic + 4 * (turned - self.cubic) @ shift + square * (2 * trace + self.count * square)
        return cubic, float(quartic)

    def second_moment(self, about: Float[Tensor, " d_model"] | None = None) -> Float[Tensor, "d_model d_model"]:
        """Σ (x − about)(x − about)ᵀ; about the origin when ``about`` is None."""
        offset = self.mean if about is None else self.mean - about
        return self.scatter + self.count * torch.outer(offset, offset)

    def covariance(self, about: Float[Tensor, " d_model"] | None = None) -> Float[Tensor, "d_model d_model"]:
        """Mean of (x − about)(x − about)ᵀ; about the own mean when ``about`` is None."""
        return self.second_moment(self.mean if about is None else about) / self.count


@one_thread(blas=False)
def shrinkage(moments: Moments, rule: Shrinkage) -> float:
    """The weight ρ of (tr Σ/d)·I in (1−ρ)Σ + ρ(tr Σ/d)·I that comes nearest to the true covariance.

    ``ledoit-wolf`` (Ledoit and Wolf 2004, lemma 3.2 to 3.4; needs the fourth moment, which :class:`Moments`
    streams) or ``oas`` (Chen, Wiesel, Eldar and Hero 2010, eq. 23; assumes a Gaussian and needs Σ only).
    """
    covariance, n = moments.covariance(), moments.count
    d = len(covariance)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    distance = square - trace**2 / d  # ‖Σ − (tr Σ/d)·I‖²
    if distance <= 0:
        return 1.0
    if rule == "ledoit-wolf":
        error = (moments.quartic / n - square) / n  # mean squared error of Σ, estimated from the rows' own scatter
        return min(max(error / distance, 0.0), 1.0)
    return min((square + trace**2) / ((n + 1) * distance), 1.0) if n > 1 else 1.0


@one_thread(blas=False)
def top_directions(
    second_moment: Float[Tensor, "d_model d_model"], rank: int, towards: Float[Tensor, " d_model"]
) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, " d_model"]]:
    """First right singular vectors of a matrix A, from AᵀA.

    Args:
        second_moment: AᵀA.
        rank: how many directions.
        towards: the first direction is signed so that its dot product with this is positive; an SVD
            fixes no sign. The others get a positive largest component, so that a fit is reproducible.

    Returns:
        The directions as orthonormal columns, and all singular values of A, largest first.

    Raises:
        UsageError: ``rank`` exceeds the rank of A.
    """
    values, vectors = torch.linalg.eigh(second_moment)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    found = int((values > values[0] * 1e-12).sum()) if values[0] > 0 else 0
    if rank > found:
        raise UsageError(
            f"Rank {rank} was asked for, but the fit records span only {found} directions.",
            "Ask for a lower rank or give more records.",
        )
    basis = vectors[:, :rank].clone()
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True)).squeeze(0)
    basis *= torch.where(largest < 0, -1.0, 1.0)
    if basis[:, 0] @ towards < 0:
        basis[:, 0] *= -1
    return basis, values.sqrt()
