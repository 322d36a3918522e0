"""The streaming guard's ops: a push along the refusal direction, gated by a probe of several layers.

Formulas: :mod:`.guard`. Both read the probe's margin s − τ off the last position of every call.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.op import Hidden, Mask
from ..ops.probed import PROBE, ProbeGate

FULL = 4.0  # log-odds above the threshold at which a ramped push has reached twice its strength


class _ProbedPush(ProbeGate):
    """Shared shape: the push is a multiple of one direction."""

    params = (*PROBE, "direction", "alpha")
    strength = "alpha"

    @abstractmethod
    def length(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The push's length in units of α·direction."""

    def act(
        self, hidden: Hidden, scope: Mask, margin: Tensor, *, direction: Tensor, alpha: Tensor, **_: Tensor
    ) -> tuple[Tensor, ...]:
        x = hidden.float()
        push = alpha * self.length(margin)[:, None, None] * direction
        return torch.where((scope > 0) & (margin > 0)[:, None, None], x + push, x).to(hidden.dtype), margin

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
        push = opened * alpha.double() * self.length(margin.double())[:, None, None] * direction.double()
        left = after.double() - before.double() - push
        share: Tensor = left.abs().max() / before.double().norm(dim=-1).max()
        return share


class RampedPush(_ProbedPush):
    """h + ½α·clamp(s − τ, 0, 4)·r: the surer the probe, the stronger (``ramp``)."""

    name = "RampedPush"
    holdable = False

    def length(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return torch.where(margin < FULL, margin.relu(), FULL) / 2


class ProbedPush(_ProbedPush):
    """h + α·1[s > τ]·r (``once``, with a gate that opens once)."""

    name = "ProbedPush"

    def length(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return (margin > 0).to(margin.dtype)
