"""CAST's op: a vector is added where the prompt's state meets a condition (formulas: :mod:`.cast`)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.op import Hidden, last_state
from ..ops.pushing import GatedPush


class ConditionalAddition(GatedPush):
    """h + α 1[σ cos(s, tanh(ccᵀs/cᵀc)) > θ] v, s the last state of the first block that is read.

    ``weight`` holds c, followed by zeros for the op's own site where an earlier one is read; ``sense`` is σ = ±1.
    """

    name = "ConditionalAddition"
    params = ("weight", "sense", "threshold", "direction", "alpha")
    gate_params = ("weight", "sense", "threshold")

    def margin(
        self,
        hidden: Hidden,
        *,
        weight: Tensor,
        sense: Tensor,
        threshold: Tensor,
        earlier: Tensor | None = None,
        **_: Tensor,
    ) -> Float[Tensor, " batch"]:
        width = hidden.shape[-1]
        state = last_state(hidden, earlier)[:, :width]
        return sense * similarity(state, weight[:width]) - threshold

    def magnitude(self, hidden: Hidden, *, weight: Tensor, **_: Tensor) -> Float[Tensor, " batch"]:
        return torch.ones_like(hidden[:, -1, 0], dtype=weight.dtype)  # of a cosine

    def push(self, margin: Tensor, direction: Tensor, alpha: Tensor) -> Tensor:
        return alpha * direction


def similarity(state: Float[Tensor, "batch d_model"], condition: Float[Tensor, " d_model"]) -> Float[Tensor, " batch"]:
    """cos(s, tanh(ccᵀs/cᵀc)); 0 where s or its projection is 0."""
    shown = torch.tanh((state @ condition / (condition @ condition))[:, None] * condition)
    sizes = state.norm(dim=-1) * shown.norm(dim=-1)
    found: Tensor = (state * shown).sum(-1) / sizes.clamp_min(1e-30)
    return found
