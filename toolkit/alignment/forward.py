"""Forward passes that keep gradients, and the picture features that need none.

The tower is frozen, so it runs once per picture: what the projector reads (site ``vision``) is kept, in a file that
is mapped into memory, and each step runs only the projector and the decoder.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...adapters.errors import UsageError
from ..captions import CaptionedPicture
from ..inputs import Inputs, Request
from .batches import caption_mask
from .loss import pooled

if TYPE_CHECKING:
    from ..vlm import VLM

_BATCH = 64


@dataclass(frozen=True)
class Pass:
    """What one forward pass gave.

    Attributes:
        states: outputs of decoder blocks by layer [batch, seq, d_model].
        logits: of the last positions; how many is up to the caller.
    """

    states: dict[int, Float[Tensor, "batch seq d_model"]]
    logits: Float[Tensor, "batch tail vocab"]


def require_projector(vlm: VLM) -> nn.Module:
    """The projector.

    Raises:
        UsageError: the model has none, or does not take ready-made features, so that it cannot be trained here.
    """
    if vlm.parts.projector is None or not vlm.features.usable:
        raise UsageError(
            f"{type(vlm.model).__name__} has no projector that can be trained apart from its tower.",
            "Text-guided alignment needs a model of tower, projector and decoder, such as LLaVA.",
        )
    return vlm.parts.projector


class PictureFeatures:
    """What the projector reads of every captioned picture: [pictures, tokens, d_vision].

    Args:
        path: where the table is kept; it is read back if it is there already.

    Raises:
        UsageError: the model has no projector that can be trained, or its pictures differ in their number of tokens.
    """

    def __init__(self, vlm: VLM, captions: Sequence[CaptionedPicture], path: Path | None = None) -> None:
        self._vlm, self._projector = vlm, require_projector(vlm)
        if path is None or not path.is_file():
            table = self._encode(captions)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                save_file({"features": table}, path)
        self.table = table if path is None else load_file(path)["features"]
        self._require_faithful(captions[0])

    def projected(self, items: Sequence[int]) -> Float[Tensor, "pictures tokens d_model"]:
        """The projector's output, with gradient."""
        return self._projector(self.table[list(items)].to(self._vlm.device, self._vlm.model.dtype))

    @torch.no_grad()
    def _encode(self, captions: Sequence[CaptionedPicture]) -> Tensor:
        seen: list[Tensor] = []
        handle = self._projector.register_forward_pre_hook(lambda _, args: seen.append(args[0].float().cpu()))
        try:
            for start in range(0, len(captions), _BATCH):
                chosen = captions[start : start + _BATCH]
                inputs = self._vlm.inputs.prepare([Request("", item.picture()) for item in chosen])
                pixels = torch.from_numpy(inputs.pixel_values).to(self._vlm.device, self._vlm.model.dtype)
                self._vlm.model.get_image_features(pixels, return_dict=True)
        finally:
            handle.remove()
        if sum(len(rows) for rows in seen) != len(captions) or len({rows.shape[1:] for rows in seen}) != 1:
            raise UsageError(
                "The projector does not read one block of tokens per picture.",
                "Text-guided alignment needs pictures that all become the same number of tokens.",
            )
        return torch.cat(seen)

    @torch.no_grad()
    def _require_faithful(self, item: CaptionedPicture) -> None:
        """The model must use the projector's output as it is, or training would see other features than it."""
        inputs = self._vlm.inputs.prepare([Request("", item.picture())])
        pixels = torch.from_numpy(inputs.pixel_values).to(self._vlm.device, self._vlm.model.dtype)
        real = torch.cat(list(self._vlm.model.get_image_features(pixels, return_dict=True).pooler_output))
        mine = self.projected([0]).flatten(0, 1)
        if real.shape != mine.shape or not torch.allclose(real, mine, rtol=1e-3, atol=1e-4):
            raise UsageError(
                f"{type(self._vlm.model).__name__} changes the projector's output before the decoder reads it.",
                "Text-guided alignment cannot be trained on this architecture yet.",
            )


def run(
    vlm: VLM,
    inputs: Inputs,
    layers: Sequence[int],
    features: Float[Tensor, "pictures tokens d_model"] | None = None,
    tail: int = 1,
) -> Pass:
    """One forward pass with gradient wherever something is trained.

    Args:
        features: projected pictures in row order.
        tail: positions at the end whose logits are wanted.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    arguments: dict[str, Any] = vlm.arguments(_without_pixels(inputs))
    if features is not None:
        arguments["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=list(features))}
    if "logits_to_keep" in inspect.signature(vlm.model.forward).parameters:
        arguments["logits_to_keep"] = tail
    states: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(vlm.parts.layers[layer].register_forward_hook(_keeper(states, layer)).remove)
        logits = vlm.model(**arguments, use_cache=False).logits
    return Pass(states, logits[:, -tail:])


def _without_pixels(inputs: Inputs) -> Inputs:
    return Inputs(inputs.input_ids, inputs.attention_mask, inputs.vision_mask, None)


def _keeper(states: dict[int, Tensor], layer: int):
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        states[layer] = output if isinstance(output, Tensor) else output[0]

    return keep


@torch.no_grad()
def caption_states(vlm: VLM, texts: Sequence[str], layers: Sequence[int]) -> dict[int, Float[Tensor, "texts d_model"]]:
    """Mean state of each text's own tokens, alone in a turn, per layer: float32 on the CPU. No gradient."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for start in range(0, len(texts), _BATCH):
        inputs, mask = caption_mask(vlm.inputs, texts[start : start + _BATCH])
        states = run(vlm, inputs, layers).states
        for layer in layers:
            found[layer].append(pooled(states[layer].float(), mask.to(vlm.device)).cpu())
    return {layer: torch.cat(rows) for layer, rows in found.items()}
