"""A linear probe on one block of the normal pass: a cheap detector, and what SASA must beat (ours; it is not SASA).

    risk = w · h^f_last + β,   see :mod:`safetykit.adapters.statistics.probe`

It costs one product per request and no second run of any block. The layer that is not given is chosen as SASA's are.
Of several layers the last positions are read beside each other, h = (h^a, h^b, …): harm that no one block shows
clearly may show in how several of them stand to each other. One layer is the special case.
In space ``logits`` the penalty is that of the LM head read at block f, without the final norm.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..ops.op import Detector, Hidden, last_state


class LinearProbe(Detector):
    """A probe on the last position of a block's output, and of earlier ones'; the hidden state stays as it is."""

    name = "LinearProbe"
    params = ("weight", "bias")
    reads_earlier = True

    def forward(
        self, hidden: Hidden, *, weight: Tensor, bias: Tensor, earlier: Tensor | None = None
    ) -> Float[Tensor, " batch"]:
        return last_state(hidden, earlier) @ weight + bias
