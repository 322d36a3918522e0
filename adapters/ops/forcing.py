"""A forced refusal: the first answer token's logits leave a greedy runtime no choice.

For runtimes that know nothing of detectors. The values are finite in float16 and far enough apart that sampling
at any usual temperature finds the same token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

FORCED_LOGIT = 1e4


class ForcedRefusal(nn.Module):
    """Replaces the last position's logits of rows whose risk is above the threshold; all others stay bit for bit."""

    def forward(
        self,
        logits: Float[Tensor, "batch seq vocab"],
        risk: Float[Tensor, " batch"],
        threshold: Float[Tensor, ""],
        token: Int[Tensor, ""],
    ) -> Float[Tensor, "batch seq vocab"]:
        """``token`` gets +10⁴ and every other token −10⁴; a risk that is NaN (past the prefill) forces nothing."""
        vocabulary = torch.arange(logits.shape[-1], device=logits.device)
        forced = torch.where(vocabulary == token, FORCED_LOGIT, -FORCED_LOGIT).to(logits.dtype)
        position = torch.arange(logits.shape[1], device=logits.device)
        where = (risk > threshold)[:, None, None] & (position == logits.shape[1] - 1)[None, :, None]
        return torch.where(where, forced, logits)
