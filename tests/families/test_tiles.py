"""Families with tiles: what they compute beforehand in NumPy is what their models compute from the pictures."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaNextModel, LlavaOnevisionModel
from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

from safetykit.adapters.errors import UsageError
from safetykit.bench.zoo import build
from safetykit.toolkit.families import family_or_any
from safetykit.toolkit.families.idefics import patch_positions
from safetykit.toolkit.model.inputs import InputProcessor
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

SIZES = [(30, 200), (200, 30), (100, 90), (16, 16), (333, 500), (1, 40), (64, 48), (47, 97)]  # height, width


@pytest.mark.parametrize("side", [4, 13, 26, 27])
def test_patch_positions_are_those_of_the_tower(side):
    tower = Idefics3VisionEmbeddings(
        Idefics3VisionConfig(hidden_size=1, num_attention_heads=1, image_size=2 * side, patch_size=2)
    )
    torch.nn.init.zeros_(tower.patch_embedding.weight)
    torch.nn.init.zeros_(tower.patch_embedding.bias)
    tower.position_embedding.weight.data = torch.arange(side**2).float()[:, None]  # each position says which it is
    rows, columns = np.meshgrid(np.arange(1, side + 1), np.arange(1, side + 1))
    patches = np.zeros((side**2, side, side), bool)
    for tile, (row, column) in enumerate(zip(rows.flat, columns.flat, strict=True)):
        patches[tile, :row, :column] = True
    pixels = torch.zeros(side**2, 3, 2 * side, 2 * side)
    theirs = tower(pixels, torch.from_numpy(patches))[..., 0].detach().numpy()
    assert np.array_equal(patch_positions(patches, side), theirs)


def test_blank_tiles_and_padding_are_left_out():
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=8, patch_size=4))
    pixels = np.ones((2, 2, 3, 8, 8), np.float32)
    pixels[1, 1] = 0  # the second picture has one tile
    mask = np.ones((2, 2, 8, 8), np.int64)
    mask[1, 0, :, 3:] = 0
    feeds = family_or_any(SimpleNamespace(model_type="idefics3")).vision_feeds(
        config, {"pixel_values": pixels, "pixel_attention_mask": mask}
    )
    assert feeds["pixel_values"].shape == (3, 3, 8, 8)
    assert feeds["patch_mask"].tolist() == [[True] * 4, [True] * 4, [True, False, True, False]]


def test_a_tile_that_a_picture_does_not_fill_gives_the_features_of_the_model(tmp_path):
    vlm = VLM.from_pretrained(build("idefics3", tmp_path / "model"))
    config, family = vlm.inputs.config, vlm.inputs.family
    size = config.vision_config.image_size
    generator = np.random.default_rng(0)
    pixels = generator.standard_normal((1, 2, 3, size, size)).astype(np.float32)
    mask = np.ones((1, 2, size, size), np.int64)
    mask[0, 1, :, size // 2 :] = 0
    pixels[0, 1, :, :, size // 2 :] = 0
    given = {"pixel_values": pixels, "pixel_attention_mask": mask}
    with torch.no_grad():
        feeds = {name: torch.from_numpy(value) for name, value in family.vision_feeds(config, given).items()}
        mine = family.vision(vlm.model, **feeds)[0].flatten(0, 1)
        theirs = vlm.model.get_image_features(**vlm.tensors(given), return_dict=True).pooler_output[0]
    assert torch.allclose(mine, theirs, atol=1e-4)
    with pytest.raises(UsageError, match="makes tiles of 8 by 16 pixels, the tower reads 16 by 16"):
        family.vision_feeds(config, {name: value[..., : size // 2] for name, value in given.items()})


def settings(model_type: str, side: int, most: int = 9) -> SimpleNamespace:
    tile = 4 * side
    grid = [[tile * rows, tile * columns] for rows in range(1, 7) for columns in range(1, 7)]
    vision = SimpleNamespace(image_size=tile, patch_size=4)
    return SimpleNamespace(
        model_type=model_type, vision_config=vision, image_grid_pinpoints=grid, vision_aspect_ratio=f"anyres_max_{most}"
    )


@pytest.mark.parametrize("model_type", ["llava_next", "llava_onevision"])
@pytest.mark.parametrize(("side", "most"), [(4, 9), (6, 2), (27, 9)])
def test_packing_gives_the_features_that_the_model_packs(model_type, side, most):
    config = settings(model_type, side, most)
    family = family_or_any(config)
    generator = torch.Generator().manual_seed(0)
    tile = config.vision_config.image_size
    sizes = np.array([(height * tile // 20 + 1, width * tile // 20 + 1) for height, width in SIZES])
    pixels = np.ones((len(sizes), 37, 3, 1, 1), np.float32)
    feeds = family.vision_feeds(config, {"pixel_values": pixels, "image_sizes": sizes})
    projected = torch.randn(len(feeds["pixel_values"]), side**2, 3, generator=generator)
    newline = torch.randn(3, generator=generator)
    rows = torch.cat([projected.flatten(0, 1), newline[None]])
    mine = (rows[feeds["packing_index"]] * torch.from_numpy(feeds["packing_weight"])[..., None]).sum(1)

    counts = [1 + np.prod(_best(size, config)) // tile**2 for size in sizes.tolist()]
    model = SimpleNamespace(config=config)
    if model_type == "llava_next":
        packed, _ = LlavaNextModel.pack_image_features(model, projected.split(counts), sizes, "full", newline)
    else:
        packed, _ = LlavaOnevisionModel.pack_image_features(
            model, projected.split(counts), sizes, newline, config.vision_aspect_ratio
        )
    # In double precision, places in a large grid are 4e-5 away from the model's, which are in single precision.
    assert torch.allclose(mine, torch.cat(packed), atol=3e-5)


def _best(size, config):
    from transformers.image_processing_utils import select_best_resolution

    return select_best_resolution(tuple(size), config.image_grid_pinpoints)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("internvl", "GotOcr2ImageProcessorFast"),
        ("smolvlm", "SmolVLMImageProcessor"),
        ("llava_onevision", "LlavaOnevisionImageProcessor"),
    ],
)
def test_processors_load_without_what_videos_need_from_files_of_both_layouts(name, kind, tmp_path):
    """Published checkpoints have one file for each part; newer ones have all parts in one file."""
    new, old = build(name, tmp_path / "new"), tmp_path / "old"
    shutil.copytree(new, old)
    whole = json.loads((old / "processor_config.json").read_text())
    pictures = {
        **whole.pop("image_processor"),
        "image_processor_type": kind,
        "processor_class": whole["processor_class"],
    }
    videos = {"video_processor_type": "Unknown", "processor_class": whole["processor_class"]}
    for file, value in {
        "processor_config.json": whole,
        "preprocessor_config.json": pictures,
        "video_preprocessor_config.json": videos,
        "chat_template.json": {"chat_template": (old / "chat_template.jinja").read_text()},
    }.items():
        (old / file).write_text(json.dumps(value))
    (old / "chat_template.jinja").unlink()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    made = [
        InputProcessor.from_pretrained(folder).prepare([Request("what is this ?", picture)]) for folder in (new, old)
    ]
    assert np.array_equal(made[0].input_ids, made[1].input_ids)
    assert all(np.array_equal(made[0].pictures[key], made[1].pictures[key]) for key in made[0].pictures)
