"""Streaming statistics: one pass, O(d²) memory, mergeable, whatever the number of records."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import UsageError


class Moments:
    """Count, mean and scatter of a stream of vectors, in float64.

    Batches are combined by the pairwise update of Chan, Golub and LeVeque (1983), which does not
    cancel when the mean is large compared with the spread, as it is for hidden states.

    Attributes:
        count: number of vectors seen.
        mean: [d_model].
        scatter: [d_model, d_model], Σ (x − mean)(x − mean)ᵀ.
    """

    def __init__(self, d_model: int) -> None:
        self.count = 0
        self.mean = torch.zeros(d_model, dtype=torch.float64)
        self.scatter = torch.zeros(d_model, d_model, dtype=torch.float64)

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
        self.merge(other)

    def merge(self, other: Moments) -> None:
        """Add what another stream has seen."""
        if not other.count:
            return
        total = self.count + other.count
        gap = other.mean - self.mean
        self.scatter += other.scatter + torch.outer(gap, gap) * (self.count * other.count / total)
        self.mean = self.mean + gap * (other.count / total)
        self.count = total

    def second_moment(self, about: Float[Tensor, "d_model"] | None = None) -> Float[Tensor, "d_model d_model"]:
        """Σ (x − about)(x − about)ᵀ; about the origin when ``about`` is None."""
        offset = self.mean if about is None else self.mean - about
        return self.scatter + self.count * torch.outer(offset, offset)


def top_directions(
    second_moment: Float[Tensor, "d_model d_model"], rank: int, towards: Float[Tensor, "d_model"]
) -> tuple[Float[Tensor, "d_model rank"], Float[Tensor, "d_model"]]:
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
