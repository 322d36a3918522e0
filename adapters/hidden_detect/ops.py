"""HiddenDetect's op: a cosine in the space of the vocabulary, computed in that of states (formula: :mod:`.detect`)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ..ops.op import Detector, Hidden


class RefusalCosine(Detector):
    """uᵀh / √(hᵀGh) of the last position; 0 of a state that is 0."""

    name = "RefusalCosine"
    params = ("direction", "gram")

    def forward(self, hidden: Hidden, *, direction: Tensor, gram: Tensor) -> Float[Tensor, " batch"]:
        x = hidden[:, -1].float()
        x = x / x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)  # squares of large states overflow
        square = ((x @ gram) * x).sum(-1)
        cosine: Tensor = (x @ direction) / square.clamp(min=1e-30).sqrt()
        return cosine
