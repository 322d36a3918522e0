"""Names of what NullSteer can be told to learn from; apart, so that settings need no torch."""

from __future__ import annotations

from typing import Literal

Harmful = Literal["text", "both"]
Harmless = Literal["tokens", "last"]
Towards = Literal["refused", "harmful"]
