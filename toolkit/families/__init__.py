"""Model families whose base graphs safetykit exports: one file each. Free of torch at import."""

from . import gemma3, idefics, internvl, llava, llava_next, paligemma, qwen2_5_vl, qwen2_vl, qwen3_vl  # noqa: F401  registers
from .family import Family, GraphInput
from .registry import exportable, family_names, family_of, family_or_any, register

__all__ = ["Family", "GraphInput", "exportable", "family_names", "family_of", "family_or_any", "register"]
