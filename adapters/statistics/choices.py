"""Names of what statistics can be told to do; apart, so that settings need no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SubspaceVariant = Literal["official", "corrected"]
Centre = Literal["own", "benign"]
Shrinkage = Literal["ledoit-wolf", "oas"]
Modality = Literal["visual", "textual"]
Selection = Literal["kernel", "none"]
Space = Literal["logits", "hidden"]
Direction = Literal["svd", "mean"]
Contrast = Literal["label", "carrier", "behaviour"]


@dataclass(frozen=True)
class TokenChoice:
    """Which tokens are pooled.

    Attributes:
        selection: by kernel witness, or ``none``: all of them.
        visual_share, textual_share: of the tokens of that modality, in (0, 1].
        with_response: whether the response follows the prompt; its tokens are textual.
    """

    selection: Selection = "kernel"
    visual_share: float = 1 / 8
    textual_share: float = 0.2
    with_response: bool = False

    def share(self, modality: Modality) -> float:
        """The share of one modality's tokens."""
        return self.visual_share if modality == "visual" else self.textual_share
