"""Towers that read packed patches: what they are fed is what transformers computes from the grids by itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import vision_utils

from safetykit.toolkit.families.grids import block_order, table_mix
from safetykit.toolkit.families.packed import Packed, PackedWindows, bounds, packed_attention
from safetykit.toolkit.families.paddleocr import PaddleOCR
from safetykit.toolkit.families.qwen3_5 import Qwen35

GRIDS = np.array([[1, 6, 8], [1, 2, 4], [1, 10, 4]])
VISION = SimpleNamespace(spatial_merge_size=2, window_size=16, patch_size=4, num_position_embeddings=36, image_size=24)
CONFIG = SimpleNamespace(vision_config=VISION)


@pytest.mark.parametrize("family", [Packed, PackedWindows, Qwen35])
def test_places_lengths_windows_and_tables_are_those_of_transformers(family):
    found = family().of_grids(CONFIG, GRIDS)
    grids = torch.from_numpy(GRIDS)
    wanted = {
        "position_ids": vision_utils.get_vision_position_ids(grids, 2),
        "cu_seqlens": vision_utils.get_vision_cu_seqlens(grids),
    }
    if family is PackedWindows:
        windows = vision_utils.get_vision_window_index(grids, 2, VISION.window_size, VISION.patch_size)
        wanted |= dict(zip(("window_index", "cu_window_seqlens"), windows, strict=True))
    if family is Qwen35:
        table = vision_utils.get_vision_interpolation_indices_and_weights(grids, 6, "bilinear", True, 2)
        wanted |= dict(zip(("interp_indices", "interp_weights"), table, strict=True))
    for name, theirs in wanted.items():
        assert np.abs(found[name] - theirs.numpy()).max() < 1e-6, name


def test_a_table_that_is_read_row_by_row_is_that_of_transformers():
    rows, weights = table_mix(GRIDS, 1, 6, corners=False)
    theirs = vision_utils.get_vision_interpolation_indices_and_weights(torch.from_numpy(GRIDS), 6)
    assert np.array_equal(rows, theirs[0].numpy()) and np.abs(weights - theirs[1].numpy()).max() < 1e-6
    found = PaddleOCR().of_grids(CONFIG, GRIDS)
    assert np.array_equal(found["interp_indices"], rows)


def test_patches_are_put_into_blocks():
    order = block_order(np.array([[1, 4, 4], [1, 2, 2]]), 2)
    assert order.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15, 16, 17, 18, 19]
    assert bounds(np.array([0, 0, 0, 1, 2, 2])).tolist() == [0, 3, 4, 6]


def test_patches_see_their_own_sequence_only():
    from transformers.models.glm_ocr.configuration_glm_ocr import GlmOcrVisionConfig
    from transformers.models.glm_ocr.modeling_glm_ocr import GlmOcrVisionModel

    sizes = {"hidden_size": 16, "out_hidden_size": 8, "intermediate_size": 16, "depth": 1, "num_heads": 2}
    tower = GlmOcrVisionModel._from_config(GlmOcrVisionConfig(**sizes, patch_size=2, spatial_merge_size=2)).eval()
    grids = torch.from_numpy(GRIDS)
    pixels = torch.randn(int(grids.prod(1).sum()), 3 * 2 * 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = tower(pixels, grid_thw=grids).pooler_output
        before = tower.config._attn_implementation
        with packed_attention(tower):
            lengths = vision_utils.get_vision_cu_seqlens(grids)
            ours = tower(pixels, grid_thw=grids, cu_seqlens=lengths, max_seqlen=1).pooler_output
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert tower.config._attn_implementation == before
