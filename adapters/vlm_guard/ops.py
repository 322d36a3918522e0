"""VLM-Guard's gated ops: a push inside the safety subspace where the gate is open (formulas: :mod:`.vlm_guard`)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.gating import GatedOp
from ..ops.op import Hidden, Mask, project


class _SubspaceGate(GatedOp):
    """Shared shape of the gated variants: (h_last − μ)·w − τ opens the gate."""

    ranked = ("basis",)

    def margin(
        self, hidden: Hidden, *, mean: Tensor, gate: Tensor, threshold: Tensor, **_: Tensor
    ) -> Float[Tensor, " batch"]:
        x = hidden[:, -1]
        return ((x if x.dtype == torch.float64 else x.float()) - mean) @ gate - threshold

    def magnitude(self, hidden: Hidden, *, gate: Tensor, **_: Tensor) -> Float[Tensor, " batch"]:
        size: Tensor = hidden[:, -1].to(gate.dtype).square().mean(-1).sqrt() * gate.norm()
        return size

    def _push(self, hidden: Hidden, scope: Mask, push: Tensor, margin: Tensor) -> Tensor:
        x = hidden.float()
        opened = (margin > 0)[:, None, None]
        return torch.where((scope > 0) & opened, x + push, x).to(hidden.dtype)


class GatedSteering(_SubspaceGate):
    """h + α g P h (``steer``)."""

    name = "GatedSteering"
    params = ("basis", "mean", "gate", "threshold", "alpha")
    gate_params = ("mean", "gate", "threshold")
    strength = "alpha"

    def act(
        self, hidden: Hidden, scope: Mask, margin: Tensor, *, basis: Tensor, alpha: Tensor, **_: Tensor
    ) -> tuple[Tensor, ...]:
        return self._push(hidden, scope, alpha * project(hidden.float(), basis), margin), margin


class TargetSteering(_SubspaceGate):
    """h + g P(α·target − (h − μ)), target being relative to μ (``target``)."""

    name = "TargetSteering"
    params = ("basis", "mean", "gate", "threshold", "alpha", "target")
    gate_params = ("gate", "threshold")

    def act(
        self,
        hidden: Hidden,
        scope: Mask,
        margin: Tensor,
        *,
        basis: Tensor,
        mean: Tensor,
        alpha: Tensor,
        target: Tensor,
        **_: Tensor,
    ) -> tuple[Tensor, ...]:
        push = project(alpha * target - (hidden.float() - mean), basis)
        return self._push(hidden, scope, push, margin), margin

    def kept(
        self,
        before: Hidden,
        after: Hidden,
        scope: Mask,
        margin: Tensor,
        *,
        basis: Tensor,
        mean: Tensor,
        alpha: Tensor,
        target: Tensor,
        **_: Tensor,
    ) -> Tensor:
        basis, mean, alpha, target = (tensor.double() for tensor in (basis, mean, alpha, target))
        left = (after.double() - mean - alpha * target) @ basis
        opened = (margin > 0)[:, None, None]
        share: Tensor = (left * ((scope > 0) & opened)).abs().max() / (before.double() - mean).norm(dim=-1).max()
        return share


class SupervisedSteering(_SubspaceGate):
    """h + g P(α(x − μ) − (h − μ)), x the text-only state of the same query (``supervised``).

    ``state`` is the last-position input of the op: run the text-only prompt first, then hand its
    ``state`` back as ``reference``.
    """

    name = "SupervisedSteering"
    params = ("basis", "mean", "gate", "threshold", "alpha")
    runtime_inputs = ("reference",)
    extras = ("score", "state")

    def act(
        self,
        hidden: Hidden,
        scope: Mask,
        margin: Tensor,
        *,
        reference: Float[Tensor, "batch d_model"],
        basis: Tensor,
        mean: Tensor,
        alpha: Tensor,
        **_: Tensor,
    ) -> tuple[Tensor, ...]:
        x = hidden.float()
        push = project(alpha * (reference.float()[:, None] - mean) - (x - mean), basis)
        return self._push(hidden, scope, push, margin), margin, x[:, -1]
