"""SASA (ACM MM 2025, arXiv:2507.21637): a probe before generation, on fused semantics projected onto the safety layer.

Safety is perceived in early layers, meaning emerges in later, fused ones. So the state of the safety layer s is
replaced, token by token, by the fused layer's state f scaled to be its projection::

    H'_s,t = α_t H_f,t,   α_t = ⟨H_s,t, H_f,t⟩ / ‖H_f,t‖²

blocks s+1…L−1 continue from H', and a logistic regression on the logits of the last prompt position gives the risk.

Exact and cheap (ours): H_f does not depend on the second pass, so blocks 0…f run once and the pass forks there. A
probe w on logits folds into hidden space: wᵀ W_U norm(h) = (W_Uᵀ w)ᵀ norm(h), a d×1 product (:mod:`.probe`).

Variants: ``published``    as above
          ``unprojected``  the ablation s = f: α = 1, so the branch is the normal pass. All f give the same states;
                           the last block is taken, after which nothing runs twice

Layers: those of LLaVA-1.5-7B are 13 and 15 in the paper, of unknown index base, and say nothing about another model.
Those that are not given are chosen (ours), coarse to fine on a part of the records (:mod:`..statistics.search`): the
pair with the lowest out-of-fold loss on the fit split. Pairs whose loss lies within one standard error of it are
decided by the loss on calibration records, whose requests are about other things: a probe may know the things it was
fitted on by heart. No carrier outside the two splits has a say.

Space: either way the probe is linear in the logits; the paper's penalty (``logits``) and ours (``hidden``) weigh its
directions differently. On both reference VLMs ``hidden`` had the lower loss and the higher AUROC on calibration
records, averaged over all pairs, and is the default.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.branch import BranchOp
from ..ops.op import Hidden


class FusedProjection(BranchOp):
    """H' = α H_f with α in float32: squares of outliers overflow float16."""

    name = "FusedProjection"
    params = ("weight", "bias")

    def start(self, safety: Hidden, fused: Hidden) -> Hidden:
        early, late = safety.float(), fused.float()
        square = (late * late).sum(-1, keepdim=True)
        alpha = (early * late).sum(-1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
        return (alpha * late).to(fused.dtype)

    def risk(self, normed: Hidden, *, weight: Tensor, bias: Tensor) -> Float[Tensor, " batch"]:
        return normed[:, -1].float() @ weight + bias
