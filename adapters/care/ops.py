"""The ops of CARE; with one modality, or one after the other, ``SubspaceProjection`` serves.

In all of them Δ_m = −α U_m U_mᵀ(h − μ_m) for the modalities m = v(isual), t(extual). The columns of U are of
length 1; those of the variant ``official`` are not orthogonal, so nothing here assumes that they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.affine import AffineMap
from ..ops.op import Corrector, Hidden, Mask, project


def _corrections(
    x: Hidden, visual: Tensor, visual_mean: Tensor, textual: Tensor, textual_mean: Tensor, alpha: Tensor
) -> tuple[Hidden, Hidden]:
    """Δ_v and Δ_t."""
    return -alpha * project(x - visual_mean, visual), -alpha * project(x - textual_mean, textual)


def _outside(change: Hidden, basis: Float[Tensor, "d_model rank"]) -> Hidden:
    """The part of ``change`` that lies outside the span of ``basis``."""
    left, values, _ = torch.linalg.svd(basis, full_matrices=False)
    span = left[:, values > values[0] * 1e-6]  # parallel columns span less than their number
    return change - project(change, span)


class _TwoSubspaces(Corrector):
    """Shared shape: both corrections are read off the same state and combined."""

    params = ("visual_basis", "visual_mean", "textual_basis", "textual_mean", "alpha")
    strength = "alpha"
    ranked = ("visual_basis", "textual_basis")

    def invariant(
        self, before: Hidden, after: Hidden, scope: Mask, *, visual_basis: Tensor, textual_basis: Tensor, **_: Tensor
    ) -> Tensor:
        """Nothing is changed outside the two subspaces."""
        change = after.double() - before.double()
        outside = _outside(change, torch.cat([visual_basis, textual_basis], dim=1).double())
        share: Tensor = (outside * (scope > 0)).abs().max() / before.double().norm(dim=-1).max()
        return share


class ParallelProjection(_TwoSubspaces):
    """h + Δ_v + Δ_t."""

    name = "ParallelProjection"

    def forward(
        self,
        hidden: Hidden,
        scope: Mask,
        *,
        visual_basis: Tensor,
        visual_mean: Tensor,
        textual_basis: Tensor,
        textual_mean: Tensor,
        alpha: Tensor,
    ) -> tuple[Tensor]:
        x = hidden.float()
        visual, textual = _corrections(x, visual_basis, visual_mean, textual_basis, textual_mean, alpha)
        return (torch.where(scope > 0, x + visual + textual, x).to(hidden.dtype),)

    def affine(
        self, *, visual_basis: Tensor, visual_mean: Tensor, textual_basis: Tensor, textual_mean: Tensor, alpha: Tensor
    ) -> AffineMap:
        first = AffineMap.projection(visual_basis, visual_mean, alpha)
        second = AffineMap.projection(textual_basis, textual_mean, alpha)
        return AffineMap(
            torch.cat([first.up, second.up], dim=1), torch.cat([first.down, second.down]), first.shift + second.shift
        )


def fusion_weights(
    visual: Float[Tensor, "*rest d_model"], textual: Float[Tensor, "*rest d_model"]
) -> Float[Tensor, "*rest 1"]:
    """w_v = ‖Δ_v‖/(‖Δ_v‖ + ‖Δ_t‖) per token, w_t being 1 − w_v; a half where both are 0."""
    first, second = visual.norm(dim=-1, keepdim=True), textual.norm(dim=-1, keepdim=True)
    total = first + second
    some = total > 0
    return torch.where(some, first / torch.where(some, total, torch.ones_like(total)), torch.full_like(total, 0.5))


class AdaptiveProjection(_TwoSubspaces):
    """h + w_v Δ_v + w_t Δ_t with the weights of :func:`fusion_weights`."""

    name = "AdaptiveProjection"

    def forward(
        self,
        hidden: Hidden,
        scope: Mask,
        *,
        visual_basis: Tensor,
        visual_mean: Tensor,
        textual_basis: Tensor,
        textual_mean: Tensor,
        alpha: Tensor,
    ) -> tuple[Tensor]:
        x = hidden.float()
        visual, textual = _corrections(x, visual_basis, visual_mean, textual_basis, textual_mean, alpha)
        weight = fusion_weights(visual, textual)
        return (torch.where(scope > 0, x + weight * visual + (1 - weight) * textual, x).to(hidden.dtype),)


class BenignInjection(Corrector):
    """P_safe h + β(1 − P_safe) benign with P_safe = I − U Uᵀ; ``benign`` is the benign mean μ."""

    name = "BenignInjection"
    params = ("basis", "benign", "beta")
    ranked = ("basis",)

    def forward(self, hidden: Hidden, scope: Mask, *, basis: Tensor, benign: Tensor, beta: Tensor) -> tuple[Tensor]:
        x = hidden.float()
        return (torch.where(scope > 0, x - project(x - beta * benign, basis), x).to(hidden.dtype),)

    def invariant(
        self, before: Hidden, after: Hidden, scope: Mask, *, basis: Tensor, benign: Tensor, beta: Tensor
    ) -> Tensor:
        """The component in the subspace is that of β·benign, whatever it was (up to what is not orthogonal in U)."""
        basis, benign, beta = basis.double(), benign.double(), beta.double()
        gram = basis.T @ basis
        eye = torch.eye(len(gram), dtype=gram.dtype)
        left = after.double() @ basis - before.double() @ basis @ (eye - gram) - beta * (benign @ basis) @ gram
        share: Tensor = (left * (scope > 0)).abs().max() / before.double().norm(dim=-1).max()
        return share

    def affine(self, *, basis: Tensor, benign: Tensor, beta: Tensor) -> AffineMap:
        return AffineMap.projection(basis, beta * benign, torch.ones_like(beta))
