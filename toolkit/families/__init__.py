"""Model families whose base graphs safetykit exports: one file each. Free of torch at import."""

from .family import Family, GraphInput
from .registry import exportable, families, family_names, family_of, family_or_any, register, titles

__all__ = [
    "Family",
    "GraphInput",
    "exportable",
    "families",
    "family_names",
    "family_of",
    "family_or_any",
    "register",
    "titles",
]
