"""The streaming guard's ops: a push along the refusal direction, gated by a probe of several layers.

Formulas: :mod:`.guard`. Both read the probe's margin s − τ off the last position of every call.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.gating import GatedOp
from ..ops.op import Hidden, Mask, last_state

FULL = 4.0  # log-odds above the threshold at which a ramped push has reached twice its strength


class _ProbedPush(GatedOp):
    """Shared shape: (wᵀ(h^a, h^b, …)_last + b) − τ opens the gate, and the push is a multiple of one direction."""

    params = ("weight", "bias", "threshold", "direction", "alpha")
    strength = "alpha"
    reads_earlier = True

    def forced_open(self) -> dict[str, float]:
        return {"threshold": -1e30}

    def margin(
        self,
        hidden: Hidden,
        *,
        weight: Tensor,
        bias: Tensor,
        threshold: Tensor,
        earlier: Tensor | None = None,
        **_: Tensor,
    ) -> Float[Tensor, " batch"]:
        return last_state(hidden, earlier) @ weight + (bias - threshold)

    def magnitude(
        self, hidden: Hidden, *, weight: Tensor, earlier: Tensor | None = None, **_: Tensor
    ) -> Float[Tensor, " batch"]:
        size: Tensor = last_state(hidden, earlier).to(weight.dtype).square().mean(-1).sqrt() * weight.norm()
        return size

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
