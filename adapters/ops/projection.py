"""The projection that VLM-Guard's ``orthogonal`` and CARE's affine fusions share."""

from __future__ import annotations

import torch
from torch import Tensor

from .affine import AffineMap
from .op import Corrector, Hidden, Mask, project


class SubspaceProjection(Corrector):
    """h − β P(h − μ); with β = 1 nothing of h − μ is left in the subspace."""

    name = "SubspaceProjection"
    ranked = ("basis",)
    params = ("basis", "mean", "beta")
    strength = "beta"

    def forward(self, hidden: Hidden, scope: Mask, *, basis: Tensor, mean: Tensor, beta: Tensor) -> tuple[Tensor]:
        x = hidden.float()
        moved = x - beta * project(x - mean, basis)
        return (torch.where(scope > 0, moved, x).to(hidden.dtype),)

    def invariant(
        self, before: Hidden, after: Hidden, scope: Mask, *, basis: Tensor, mean: Tensor, beta: Tensor
    ) -> Tensor:
        basis, mean, beta = basis.double(), mean.double(), beta.double()
        gram = basis.T @ basis  # the identity, unless the columns are not orthogonal, as one variant of CARE has them
        kept = torch.eye(len(gram), dtype=gram.dtype) - beta * gram
        left = (after.double() - mean) @ basis - (before.double() - mean) @ basis @ kept
        share: Tensor = (left * (scope > 0)).abs().max() / (before.double() - mean).norm(dim=-1).max()
        return share

    def affine(self, *, basis: Tensor, mean: Tensor, beta: Tensor) -> AffineMap:
        return AffineMap.projection(basis, mean, beta)
