"""LEACE's op: what a concept can be read by is taken out of the state (formulas: :mod:`.leace`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.affine import AffineMap
from ..ops.op import Corrector, Hidden, Mask


class ConceptErasure(Corrector):
    """h − β L Rᵀ(h − μ), L and R [d_model, rank]; with β = 1 and RᵀL = I nothing of Rᵀ(h − μ) is left."""

    name = "ConceptErasure"
    params = ("left", "right", "mean", "beta")
    ranked = ("left", "right")
    strength = "beta"

    def forward(
        self, hidden: Hidden, scope: Mask, *, left: Tensor, right: Tensor, mean: Tensor, beta: Tensor
    ) -> tuple[Tensor]:
        x = hidden.float()
        moved = x - beta * (((x - mean) @ right) @ left.transpose(0, 1))
        return (torch.where(scope > 0, moved, x).to(hidden.dtype),)

    def invariant(
        self, before: Hidden, after: Hidden, scope: Mask, *, left: Tensor, right: Tensor, mean: Tensor, beta: Tensor
    ) -> Tensor:
        """Rᵀ(h' − μ) is what (I − β RᵀL) leaves of Rᵀ(h − μ)."""
        left, right, mean = left.double(), right.double(), mean.double()
        kept = torch.eye(right.shape[1], dtype=right.dtype) - beta.double() * (right.T @ left)
        off = (after.double() - mean) @ right - (before.double() - mean) @ right @ kept.T
        share: Tensor = (off * (scope > 0)).abs().max() / (before.double() - mean).norm(dim=-1).max()
        return share

    def affine(self, *, left: Tensor, right: Tensor, mean: Tensor, beta: Tensor) -> AffineMap:
        return AffineMap(-beta * left, right.T, beta * (left @ (right.T @ mean)))
