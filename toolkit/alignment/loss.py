"""The losses of text-guided alignment, in tensor operations from end to end.

Per layer j, with mean-pooled states of image tokens I_j, of the caption C_j and of the retrieved text R_j [paper]::

    guide = Σ_j [ −cos(I_j, C_j) + log(1 + exp(−(cos(I_j, C_j) − cos(R_j, C_j)))) ]

C_j and R_j are targets: text-only passes of the base without gradient. So cos(R_j, C_j) is a bar and not something
that is trained, also where the decoder has LoRA: otherwise the guide could be met by moving the text.

The released code takes these cosines through Python floats, which cuts the gradient: the guide then trains nothing.

``centred`` [ours] subtracts each side's mean before the cosine. Mean-pooled states of unrelated captions have a
cosine of more than 0.9 here, so that most of what the raw cosine rewards is what all captions share.

The request's states [ours] are compared token by token: T_j,t after the caption, P_j,t after the picture::

    request = Σ_j Σ_t ‖P_j,t − T_j,t‖² / Σ_t ‖T_j,t − T̄_j‖² / number of layers
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def widened(states: Tensor) -> Tensor:
    """In float32 or wider: sums over tokens and softmaxes are not made in half precision."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def pooled(states: Float[Tensor, "batch seq d"], mask: Bool[Tensor, "batch seq"]) -> Float[Tensor, "batch d"]:
    """Mean over the masked tokens; rows without any give zeros."""
    states = widened(states)
    weights = mask.to(states.dtype)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
    return (states * weights[..., None]).sum(1)


def guide_loss(
    image: Float[Tensor, "batch d"],
    caption: Float[Tensor, "batch d"],
    retrieved: Float[Tensor, "batch d"] | None = None,
    centre: tuple[Float[Tensor, " d"], Float[Tensor, " d"]] | None = None,
) -> Float[Tensor, ""]:
    """The guide terms of one layer, averaged over the batch.

    Args:
        retrieved: None leaves the second term out (the ablation without retrieval).
        centre: means of the image side and of the text side that are subtracted; None for the paper's raw cosine.
    """
    if centre is not None:
        image, caption = image - centre[0], caption - centre[1]
        retrieved = None if retrieved is None else retrieved - centre[1]
    near = F.cosine_similarity(image, caption, dim=-1)
    loss = -near
    if retrieved is not None:
        loss = loss + F.softplus(-(near - F.cosine_similarity(retrieved, caption, dim=-1)))
    return loss.mean()


def request_loss(
    pictured: Float[Tensor, "batch tail d"], twin: Float[Tensor, "batch tail d"], request: Bool[Tensor, "batch tail"]
) -> Float[Tensor, ""]:
    """Squared distance of the request's states to those of its text twin, as a share of the twins' own spread."""
    ours, theirs = pictured[request], twin[request].detach()
    spread = (theirs - theirs.mean(0)).square().sum()
    return (ours - theirs).square().sum() / spread.clamp_min(1e-12)


def opening_loss(pictured: Float[Tensor, "batch vocab"], twin: Float[Tensor, "batch vocab"]) -> Float[Tensor, ""]:
    """KL(twin ‖ pictured) of the answer's first token, in nats, averaged over the batch."""
    return F.kl_div(pictured.log_softmax(-1), twin.detach().log_softmax(-1), log_target=True, reduction="batchmean")


def answer_loss(
    logits: Float[Tensor, "batch seq vocab"], tokens: Int[Tensor, "batch seq"], answer: Bool[Tensor, "batch seq"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the answers' tokens, in nats per token; zero if no row has an answer."""
    wanted = answer[:, 1:]
    if not wanted.any():
        return logits.sum() * 0
    return F.cross_entropy(logits[:, :-1][wanted], tokens[:, 1:][wanted])
