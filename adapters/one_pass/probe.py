"""A linear probe on one block of the normal pass: a cheap detector, and what SASA must beat (ours; it is not SASA).

    risk = w · h^f_last + β,   see :mod:`safetykit.adapters.statistics.probe`

It costs one product per request and no second run of any block. The layer that is not given is chosen as SASA's are.
In space ``logits`` the penalty is that of the LM head read at block f, without the final norm.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..ops.op import Detector, Hidden


class LinearProbe(Detector):
    """A probe on the last position of one block's output; the hidden state stays as it is."""

    name = "LinearProbe"
    params = ("weight", "bias")

    def forward(self, hidden: Hidden, *, weight: Tensor, bias: Tensor) -> Float[Tensor, " batch"]:
        return hidden[:, -1].float() @ weight + bias
