"""Towers that read the patches of all pictures as one row, as transformers writes them since 5.0.

What such a tower computes from the grids in loops that depend on the data (:mod:`transformers.vision_utils`) it also
takes ready-made; here these are inputs of the graph, computed beforehand. Which patches see each other it says by
lengths of sequences that follow one another, as packed attention kernels want it. The graph has a dense mask in their
place: right for any lengths, with memory that grows with the square of the number of patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .family import Arrays, Family, GraphInput
from .generic import logits_of
from .grids import frame_ids, patch_places, window_order
from .qwen2_vl import Qwen2VL
from .windows import require_known_layers

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..model.requests import Inputs

_NAME = "safetykit_packed_flash"  # "flash" lets towers hand over lengths instead of cutting their row by them
_LENGTHS = GraphInput("cu_seqlens", "int64", ("bounds",))


class Packed(Qwen2VL):
    """A tower that is run as it is.

    Attributes:
        tower: where it is.
        projector_inside: whether the tower calls the projector; otherwise that reads what the tower gives.
        of_patches: what it takes beside pixels, by transformers' names.
    """

    tower: ClassVar[str] = "model.visual"
    projector: ClassVar[str | None] = "model.visual.merger"
    projector_inside: ClassVar[bool] = True
    of_patches: ClassVar[tuple[GraphInput, ...]] = (GraphInput("position_ids", "int64", ("patches", 2)), _LENGTHS)

    def vision(self, model: Any, pixel_values: Tensor, **of_patches: Tensor) -> tuple[Tensor, ...]:
        tower = model.get_submodule(self.tower)
        grids = of_patches.pop("image_grid_thw", None)
        with packed_attention(tower):
            features, read = self.features(
                model, tower, pixel_values.to(tower.dtype), {"grid_thw": grids, "max_seqlen": 1, **of_patches}
            )
        return features[None], read.reshape(1, -1, read.shape[-1])

    def features(self, model: Any, tower: Any, pixels: Tensor, given: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Features [tokens, d_model] of patches, and what the projector reads of them."""
        read: list[Tensor] = []
        projector = model.get_submodule(self.projector)
        handle = projector.register_forward_pre_hook(lambda _, args: read.append(args[0]))
        try:
            seen = tower(pixels, **given)
            features = seen.pooler_output if self.projector_inside else projector(seen.pooler_output)
        finally:
            handle.remove()
        return features, read[0]

    def decoder(
        self, model: Any, inputs_embeds: Tensor, attention_mask: Tensor, cache: Any, **inputs: Tensor
    ) -> Tensor:
        return logits_of(model, inputs_embeds, attention_mask, cache, **inputs)

    def check(self, config: Any) -> None:
        require_known_layers(config.get_text_config())

    def vision_feeds(self, config: Any, pictures: Mapping[str, np.ndarray]) -> Arrays:
        grids, wanted = pictures["image_grid_thw"], {one.name for one in self.of_patches}
        found = {"pixel_values": pictures["pixel_values"], **self.of_grids(config, grids)}
        return {name: array for name, array in found.items() if name in wanted or name == "pixel_values"}

    def of_grids(self, config: Any, grids: np.ndarray) -> Arrays:
        """What a tower may ask, by transformers' names."""
        merge = config.vision_config.spatial_merge_size
        frames = frame_ids(grids)
        return {
            "image_grid_thw": grids,
            "position_ids": patch_places(grids, merge),
            "cu_seqlens": bounds(frames),
        }


class PackedWindows(Packed):
    """Most blocks of the tower see a window of the picture; its rows are sorted by window for them."""

    of_patches = (
        *Packed.of_patches,
        GraphInput("window_index", "int64", ("tokens",)),
        GraphInput("cu_window_seqlens", "int64", ("window_bounds",)),
    )

    def of_grids(self, config: Any, grids: np.ndarray) -> Arrays:
        vision = config.vision_config
        merge, side = vision.spatial_merge_size, vision.window_size // vision.spatial_merge_size // vision.patch_size
        order, windows = window_order(grids, merge, side)
        more = {"window_index": order, "cu_window_seqlens": bounds(windows)}
        return super().of_grids(config, grids) | more


class Counted(Family):
    """Positions that count up, over pictures too: for towers of Qwen-VL before other decoders."""

    def decoder_inputs(self, config: Any) -> tuple[GraphInput, ...]:
        return Family.decoder_inputs(self, config)

    def prefill(self, config: Any, inputs: Inputs) -> Arrays:
        return Family.prefill(self, config, inputs)

    def step(self, config: Any, before: Mapping[str, np.ndarray], mask: np.ndarray) -> Arrays:
        return Family.step(self, config, before, mask)


def bounds(ids: np.ndarray) -> np.ndarray:
    """Where runs of equal ``ids`` begin and end: [runs + 1] int64, from 0."""
    changes = np.flatnonzero(np.diff(ids)) + 1
    return np.concatenate([[0], changes, [len(ids)]]).astype(np.int64)


@contextmanager
def packed_attention(tower: nn.Module) -> Iterator[None]:
    """Let a tower attend by a dense mask over all patches until the block ends."""
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attention)
    configs: dict[int, Any] = {
        id(module.config): module.config for module in tower.modules() if hasattr(module, "config")
    }
    with ExitStack() as stack:
        for config in configs.values():
            stack.callback(setattr, config, "_attn_implementation", config._attn_implementation)
            config._attn_implementation = _NAME
        yield


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float | None, **further: Any
) -> tuple[Tensor, None]:
    """The attention function as transformers calls it: states [1, heads, patches, width] to the same transposed."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    lengths = further["cu_seq_lens_q"]
    places = torch.arange(query.shape[2], device=query.device)
    sequence = (places[:, None] >= lengths[None, 1:]).sum(1)
    allowed = (sequence[:, None] == sequence[None, :])[None, None]
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scaling)
    return mixed.transpose(1, 2), None
