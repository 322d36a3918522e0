"""Ops that push a state along one direction where a gate of several blocks' last states is open."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from .gating import GatedOp
from .op import Hidden, Mask


class GatedPush(GatedOp):
    """h + 1[margin > 0] p, p a multiple of ``direction`` that ``alpha`` scales; the gate has a ``threshold``."""

    params: ClassVar[tuple[str, ...]] = ("threshold", "direction", "alpha")
    strength = "alpha"
    reads_earlier = True

    @abstractmethod
    def push(
        self, margin: Float[Tensor, " batch"], direction: Float[Tensor, " d_model"], alpha: Float[Tensor, ""]
    ) -> Tensor:
        """p, for each row or for all of them: [batch, 1, d_model] or [d_model]."""

    def act(
        self, hidden: Hidden, scope: Mask, margin: Tensor, *, direction: Tensor, alpha: Tensor, **_: Tensor
    ) -> tuple[Tensor, ...]:
        x = hidden.float()
        moved = x + self.push(margin, direction, alpha)
        return torch.where((scope > 0) & (margin > 0)[:, None, None], moved, x).to(hidden.dtype), margin

    def kept(
        self,
        before: Hidden,
        after: Hidden,
        scope: Mask,
        margin: Tensor,
        *,
        direction: Tensor,
        alpha: Tensor,
        **_: Tensor,
    ) -> Tensor:
        """The state has moved by the push and by nothing else."""
        opened = (scope > 0) & (margin > 0)[:, None, None]
        push = opened * self.push(margin.double(), direction.double(), alpha.double())
        share: Tensor = (after.double() - before.double() - push).abs().max() / before.double().norm(dim=-1).max()
        return share
