"""What forms and languages are called; imports nothing, for commands name them in their help."""

from __future__ import annotations

from typing import Literal

FormName = Literal["typographic", "scene", "text+image", "blank", "noise", "photo"]
Language = Literal["en", "de", "fr", "es", "it", "pt"]  # of what is written beside a picture
