"""What a starter may be; imports nothing, for commands name it in their help."""

from __future__ import annotations

from typing import Literal

By = Literal["group", "category"]
