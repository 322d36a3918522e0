"""Adding one vector to every state."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.affine import AffineMap
from ..ops.op import Corrector, Hidden, Mask


class DirectionAddition(Corrector):
    """h + αr."""

    name = "DirectionAddition"
    params = ("direction", "strength")
    strength = "strength"

    def forward(self, hidden: Hidden, scope: Mask, *, direction: Tensor, strength: Tensor) -> tuple[Tensor]:
        x = hidden.float()
        return (torch.where(scope > 0, x + strength * direction, x).to(hidden.dtype),)

    def invariant(self, before: Hidden, after: Hidden, scope: Mask, *, direction: Tensor, strength: Tensor) -> Tensor:
        """The same vector was added everywhere."""
        left = after.double() - before.double() - strength.double() * direction.double()
        share: Tensor = (left * (scope > 0)).abs().max() / before.double().norm(dim=-1).max()
        return share

    def affine(self, *, direction: Tensor, strength: Tensor) -> AffineMap:
        none = torch.zeros_like(direction)[:, None]
        return AffineMap(none, none.transpose(0, 1), strength * direction)
