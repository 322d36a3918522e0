"""GLM-4.1V and its relatives: ``Glm4vForConditionalGeneration``, ``Glm4vMoeForConditionalGeneration``, …

Parts and weight prefixes:
    ``model.visual``            ViT for pictures of any size, whose table of positions is interpolated bicubically
    ``model.visual.merger``     the projector, behind a convolution that joins 2 x 2 patches
    ``model.language_model``    GLM-4 with rotary positions in time, height and width; experts in the larger ones
    ``lm_head``
"""

from __future__ import annotations

from .family import GraphInput
from .packed import Packed
from .registry import register


@register
class Glm4v(Packed):
    """The tower asks for the grids too, to find positions in its table."""

    name, title = "glm4v", "GLM-4.1V"
    of_patches = (*Packed.of_patches, GraphInput("image_grid_thw", "int64", ("images", 3)))


@register
class Glm46V(Glm4v):
    """GLM-4.1V's architecture."""

    name, title = "glm46v", "GLM-4.6V"


@register
class Glm4vMoe(Glm4v):
    """Experts in the decoder."""

    name, title = "glm4v_moe", "GLM-4.5V"


@register
class GlmOcr(Packed):
    """No table of positions."""

    name, title = "glm_ocr", "GLM-OCR"


@register
class GlmGa(Glm4v):
    """GLM-4.6V's classes."""

    name, title = "glmga", "GLM-GA"
