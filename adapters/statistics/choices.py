"""Names of what statistics can be told to do; apart, so that settings need no torch."""

from __future__ import annotations

from typing import Literal

SubspaceVariant = Literal["official", "corrected"]
Centre = Literal["own", "benign"]
Shrinkage = Literal["ledoit-wolf", "oas"]
Modality = Literal["visual", "textual"]
Selection = Literal["kernel", "none"]
Space = Literal["logits", "hidden"]
