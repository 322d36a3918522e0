"""VLM-Guard's gated ops: a push inside the safety subspace where the gate is open (:mod:`.vlm_guard` has the formulas)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .ops import Hidden, Mask, Op, project


def _margin(x: Hidden, mean: Tensor, gate: Tensor, threshold: Tensor) -> Float[Tensor, "batch"]:
    """(h_last − μ)·w − τ: the gate is open where this is positive."""
    return (x[:, -1] - mean) @ gate - threshold


class _Gated(Op):
    """Shared shape of the gated variants: a push inside the subspace where the gate is open."""

    extras = ("score",)

    def forced_open(self) -> dict[str, float]:
        return {"threshold": -1e30}

    def _push(self, hidden: Hidden, scope: Mask, push: Tensor, score: Tensor) -> Tensor:
        x = hidden.float()
        gate = (score > 0)[:, None, None]
        return torch.where((scope > 0) & gate, x + push, x).to(hidden.dtype)


class GatedSteering(_Gated):
    """h + α g P h (``steer``)."""

    name = "GatedSteering"
    params = ("basis", "mean", "gate", "threshold", "alpha")

    def forward(
        self, hidden: Hidden, scope: Mask, basis: Tensor, mean: Tensor, gate: Tensor, threshold: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = hidden.float()
        score = _margin(x, mean, gate, threshold)
        return self._push(hidden, scope, alpha * project(x, basis), score), score


class TargetSteering(_Gated):
    """h + g P(α·target − (h − μ)), target being relative to μ (``target``)."""

    name = "TargetSteering"
    params = ("basis", "mean", "gate", "threshold", "alpha", "target")

    def forward(
        self,
        hidden: Hidden,
        scope: Mask,
        basis: Tensor,
        mean: Tensor,
        gate: Tensor,
        threshold: Tensor,
        alpha: Tensor,
        target: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x = hidden.float()
        score = _margin(x, mean, gate, threshold)
        return self._push(hidden, scope, project(alpha * target - (x - mean), basis), score), score

    def invariant(self, before: Hidden, after: Hidden, scope: Mask, *tensors: Tensor) -> Tensor:
        basis, mean, gate, threshold, alpha, target = (tensor.double() for tensor in tensors)
        opened = _margin(before.double(), mean, gate, threshold) > 0
        left = (after.double() - mean - alpha * target) @ basis
        return (left * ((scope > 0) & opened[:, None, None])).abs().max() / (before.double() - mean).norm(dim=-1).max()


class SupervisedSteering(_Gated):
    """h + g P(α(x − μ) − (h − μ)), x the text-only state of the same query (``supervised``).

    ``state`` is the last-position input of the op: run the text-only prompt first, then hand its
    ``state`` back as ``reference``.
    """

    name = "SupervisedSteering"
    params = ("basis", "mean", "gate", "threshold", "alpha")
    runtime_inputs = ("reference",)
    extras = ("score", "state")

    def forward(
        self,
        hidden: Hidden,
        scope: Mask,
        reference: Float[Tensor, "batch d_model"],
        basis: Tensor,
        mean: Tensor,
        gate: Tensor,
        threshold: Tensor,
        alpha: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = hidden.float()
        score = _margin(x, mean, gate, threshold)
        push = project(alpha * (reference.float()[:, None] - mean) - (x - mean), basis)
        return self._push(hidden, scope, push, score), score, x[:, -1]
