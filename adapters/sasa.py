"""SASA (ACM MM 2025, arXiv:2507.21637): a probe before generation, on fused semantics projected onto the safety layer.

Safety is perceived in early layers, meaning emerges in later, fused ones. So the state of the safety layer s is
replaced, token by token, by the fused layer's state f scaled to be its projection::

    H'_s,t = α_t H_f,t,   α_t = ⟨H_s,t, H_f,t⟩ / ‖H_f,t‖²

blocks s+1…L−1 continue from H', and a logistic regression on the logits of the last prompt position gives the risk.

Exact and cheap (ours): H_f does not depend on the second pass, so blocks 0…f run once and the pass forks there. A
probe w on logits folds into hidden space: wᵀ W_U norm(h) = (W_Uᵀ w)ᵀ norm(h), a d×1 product.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .branch import BranchOp
from .ops import Hidden, Mask, Op


class FusedProjection(BranchOp):
    """H' = α H_f with α in float32: squares of outliers overflow float16."""

    name = "FusedProjection"
    params = ("weight", "bias")

    def start(self, safety: Hidden, fused: Hidden) -> Hidden:
        early, late = safety.float(), fused.float()
        square = (late * late).sum(-1, keepdim=True)
        alpha = (early * late).sum(-1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
        return (alpha * late).to(fused.dtype)

    def risk(self, normed: Hidden, *tensors: Tensor) -> Float[Tensor, "batch"]:
        weight, bias = tensors
        return normed[:, -1].float() @ weight + bias


class LinearProbe(Op):
    """A probe on the last position of one block's output; the hidden state stays as it is (ours, not SASA)."""

    name = "LinearProbe"
    params = ("weight", "bias")
    extras = ("risk",)
    detects = True

    def forward(self, hidden: Hidden, scope: Mask, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return hidden, hidden[:, -1].float() @ weight + bias
