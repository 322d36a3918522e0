"""Names of the defences; apart, so that options need nothing else."""

from __future__ import annotations

from typing import Literal

DefenceName = Literal["ecso", "system-prompt"]
