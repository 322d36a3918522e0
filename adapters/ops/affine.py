"""Low-rank affine maps of hidden states: what an op without a gate amounts to, and what folds into weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class AffineMap:
    """h' = h + up·(down·h) + shift.

    Attributes:
        up: [d_model, rank].
        down: [rank, d_model].
        shift: [d_model].
    """

    up: Float[Tensor, "d_model rank"]
    down: Float[Tensor, "rank d_model"]
    shift: Float[Tensor, " d_model"]

    def __call__(self, hidden: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest d_model"]:
        """The map applied to row vectors, in the dtype of its tensors."""
        hidden = hidden.to(self.up.dtype)
        return hidden + (hidden @ self.down.T) @ self.up.T + self.shift

    def then(self, other: AffineMap) -> AffineMap:
        """This map followed by ``other``, exactly: ranks add up."""
        down = other.down + (other.down @ self.up) @ self.down
        return AffineMap(
            up=torch.cat([self.up, other.up], dim=1),
            down=torch.cat([self.down, down]),
            shift=self.shift + other.shift + other.up @ (other.down @ self.shift),
        )

    def double(self) -> AffineMap:
        """This map in float64, for composing and folding without loss."""
        return AffineMap(self.up.double(), self.down.double(), self.shift.double())

    @classmethod
    def projection(
        cls,
        basis: Float[Tensor, "d_model rank"],
        mean: Float[Tensor, " d_model"],
        strength: Float[Tensor, ""],
    ) -> AffineMap:
        """h − strength · V Vᵀ(h − mean)."""
        return cls(up=-strength * basis, down=basis.T, shift=strength * (basis @ (basis.T @ mean)))
