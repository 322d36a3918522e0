"""Data sets in the layout of their publishers, in small; their words are abstract, and Pillow draws their pictures."""

from __future__ import annotations

from published_formats import FORMATS
from published_safety import SAFETY
from published_utility import UTILITY
from publishing import draw, write_json, write_lines, write_table

__all__ = ["PUBLISHED", "draw", "write_json", "write_lines", "write_table"]
PUBLISHED = {**SAFETY, **UTILITY, **FORMATS}
