"""What CAST can be told to do, apart from its settings, so that its statistics need none of them."""

from __future__ import annotations

from typing import Literal

Condition = Literal["pca", "mean"]
