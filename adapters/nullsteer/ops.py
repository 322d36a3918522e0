"""NullSteer's op: a low-rank linear map, with no gate (formulas: :mod:`.nullsteer`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.affine import AffineMap
from ..ops.op import Corrector, Hidden, Mask


class NullSpaceSteering(Corrector):
    """h + λ U Wᵀh, with U and W [d_model, rank]."""

    name = "NullSpaceSteering"
    params = ("up", "down", "strength")
    strength = "strength"
    ranked = ("up", "down")

    def forward(self, hidden: Hidden, scope: Mask, *, up: Tensor, down: Tensor, strength: Tensor) -> tuple[Tensor]:
        x = hidden.float()
        moved = x + strength * ((x @ down) @ up.transpose(0, 1))
        return (torch.where(scope > 0, moved, x).to(hidden.dtype),)

    def invariant(
        self, before: Hidden, after: Hidden, scope: Mask, *, up: Tensor, down: Tensor, strength: Tensor
    ) -> Tensor:
        """What was added is λ U Wᵀh: nothing outside the span of U, and nothing where Wᵀh is 0."""
        x = before.double()
        left = after.double() - x - strength.double() * ((x @ down.double()) @ up.double().transpose(0, 1))
        share: Tensor = (left * (scope > 0)).abs().max() / x.norm(dim=-1).max()
        return share

    def affine(self, *, up: Tensor, down: Tensor, strength: Tensor) -> AffineMap:
        return AffineMap(strength * up, down.transpose(0, 1), torch.zeros_like(up[:, 0]))
