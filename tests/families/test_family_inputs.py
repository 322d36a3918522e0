"""What families compute beforehand in NumPy is what their models compute from the grids themselves."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from safetykit.bench.zoo import build
from safetykit.toolkit.families.gemma3 import numbered_runs
from safetykit.toolkit.families.grids import frame_ids, patch_places, rotary_positions, table_mix, window_ids
from safetykit.toolkit.model.inputs import InputProcessor
from safetykit.toolkit.model.requests import Request

MERGE = 2
GRIDS = np.array([[1, 4, 6], [1, 2, 2], [2, 10, 4], [1, 6, 14]])


def lengths(ids: np.ndarray) -> list[int]:
    """Of runs of equal ids."""
    return [len(list(run)) for _, run in itertools.groupby(ids.tolist())]


def test_patches_lie_where_the_model_puts_them():
    wanted = get_vision_position_ids(torch.from_numpy(GRIDS), MERGE)
    assert np.array_equal(patch_places(GRIDS, MERGE), wanted.numpy())


def test_patches_see_their_own_frame():
    wanted = get_vision_cu_seqlens(torch.from_numpy(GRIDS)).diff().tolist()
    assert lengths(frame_ids(GRIDS)) == wanted and len(set(frame_ids(GRIDS))) == len(wanted)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_windows_hold_the_patches_that_the_model_sorts_together(side):
    index, bounds = get_vision_window_index(torch.from_numpy(GRIDS), MERGE, window_size=side * MERGE, patch_size=1)
    ids = window_ids(GRIDS, MERGE, side).reshape(-1, MERGE**2)
    assert (ids == ids[:, :1]).all()
    assert lengths(np.repeat(ids[index.numpy(), 0], MERGE**2)) == bounds.diff().tolist()
    assert len(np.unique(ids)) == len(bounds) - 1


def test_positions_are_interpolated_as_in_the_model():
    grids = torch.from_numpy(GRIDS)
    wanted = get_vision_interpolation_indices_and_weights(
        grids, 6, mode="bilinear", align_corners=True, spatial_merge_size=MERGE
    )
    rows, weights = table_mix(GRIDS, MERGE, 6)
    assert np.array_equal(rows, wanted[0].numpy())
    assert np.array_equal(weights, wanted[1].numpy())


def test_a_picture_moves_the_positions_by_its_longest_side():
    image = SimpleNamespace(config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=MERGE)))
    image.get_vision_position_ids = Qwen2VLModel.get_vision_position_ids.__get__(image)
    tokens = [grid.prod() // MERGE**2 for grid in GRIDS[[0, 1, 3]]]
    rows = [[0, 0, *[1] * tokens[0], 0, *[1] * tokens[1], 0, 0], [0, 0, 0], [*[1] * tokens[2], 0]]
    width = max(map(len, rows))
    types = np.array([[0] * (width - len(row)) + row for row in rows])
    mask = np.array([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    wanted, _ = Qwen2VLModel.get_rope_index(
        image,
        torch.from_numpy(types),
        torch.from_numpy(types),
        image_grid_thw=torch.from_numpy(GRIDS[[0, 1, 3]]),
        attention_mask=torch.from_numpy(mask),
    )
    found = rotary_positions(types == 1, mask, GRIDS[[0, 1, 3]], MERGE)
    assert np.array_equal(found, wanted.numpy())


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory) -> InputProcessor:
    return InputProcessor.from_pretrained(build("paligemma", tmp_path_factory.mktemp("zoo") / "paligemma"))


def test_a_prompt_of_paligemma_is_what_its_processor_makes_of_it(paligemma):
    processor, picture = paligemma.processor, Image.new("RGB", (20, 30), "green")
    wanted = processor(text="<image>what is this ?", images=[picture], return_tensors="np")
    found = paligemma.prepare([Request("what is this ?", picture)])
    assert np.array_equal(found.input_ids, wanted["input_ids"])
    assert np.array_equal(found.tokens["token_type_ids"], wanted["token_type_ids"])
    assert np.array_equal(found.pixel_values, wanted["pixel_values"])


def test_rows_of_paligemma_need_no_picture_and_an_answer_is_no_part_of_the_prefix(paligemma):
    found = paligemma.prepare([Request("what is this ?", Image.new("RGB", (9, 9)), answer="a knife"), Request("hello")])
    types, mask = found.tokens["token_type_ids"], found.attention_mask
    assert types.sum(axis=1).tolist() == [2, 0] and (types[0, -2:] == 1).all()
    assert found.vision_mask.sum(axis=1).tolist() == [16, 0]
    assert mask.sum(axis=1).tolist() == [mask.shape[1], 2] and (mask[1, -2:] == 1).all()
    assert paligemma.prepare([Request("hello")]).pictures == {}


def test_each_picture_of_gemma_is_a_group_of_its_own():
    image = torch.tensor([[1, 1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0, 1]]).bool()
    assert numbered_runs(image).tolist() == [[0, 0, -1, 1, 1, 1, -1], [-1, -1, 0, 0, -1, -1, 1]]


def test_text_counts_on_equally_in_all_three():
    mask = np.array([[0, 0, 1, 1, 1]])
    found = rotary_positions(np.zeros_like(mask, dtype=bool), mask, None, MERGE)
    assert found[:, 0].tolist() == [[0, 0, 0, 1, 2]] * 3


@pytest.mark.parametrize("name", ["gemma3", "idefics3", "internvl", "llava_next", "paligemma", "qwen2_vl"])
def test_special_tokens_that_a_user_writes_are_text_in_every_family(name, tmp_path):
    """With a picture and without; the row beside stays as it is."""
    inputs = InputProcessor.from_pretrained(build(name, tmp_path / name))
    ids, unknown = inputs.tokenizer.all_special_ids, inputs.tokenizer.unk_token_id
    ids = [one for one in {*ids, *inputs.tokenizer.added_tokens_decoder} if one not in (unknown, inputs.pad_token_id)]
    said = " ".join(inputs.plain_text.special[:40])
    for picture in (None, Image.new("RGB", (20, 30), "green")):
        plain, beside = (inputs.prepare([Request("what is this ?", picture), *more]) for more in ((), (Request(said),)))
        tagged = inputs.prepare([Request(said, picture)])
        assert np.isin(tagged.input_ids, ids).sum() == np.isin(plain.input_ids, ids).sum()
        assert tagged.vision_mask.sum() == plain.vision_mask.sum()
        row = beside.input_ids[0][beside.attention_mask[0] == 1]
        assert row.tolist() == plain.input_ids[0].tolist()
