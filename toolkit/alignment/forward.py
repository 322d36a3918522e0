"""Forward passes that keep gradients, and the picture features that need none.

The tower is frozen. Where a model reads the projector's output as it is, one block of tokens per picture, the tower
runs once per picture: what the projector reads (site ``vision``) is kept, in a file that is mapped into memory, and
each step runs only the projector and the decoder. Other models (tiles, packing, pictures of any size) run all in each
step.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...adapters.artifact.files import appearing
from ...adapters.errors import UsageError
from ..data.captions import CaptionedPicture
from ..distributed.dealing import dealt
from ..model.outputs import hidden_of
from ..model.requests import Inputs, Request
from .batches import caption_mask
from .loss import pooled

if TYPE_CHECKING:
    from ..model.vlm import VLM

_BATCH = 64


@dataclass(frozen=True)
class Pass:
    """Results of one forward pass.

    Attributes:
        states: outputs of decoder blocks by layer [batch, seq, d_model].
        logits: of the last positions; how many is up to the caller.
    """

    states: dict[int, Float[Tensor, "batch seq d_model"]]
    logits: Float[Tensor, "batch tail vocab"]


def require_projector(vlm: VLM) -> nn.Module:
    """The projector.

    Raises:
        UsageError: the model has none that can be trained.
    """
    if vlm.parts.projector is None:
        raise UsageError(
            f"{type(vlm.model).__name__} has no projector that can be trained apart from its tower.",
            "Text-guided alignment needs a model of tower, projector and decoder, such as LLaVA.",
        )
    return vlm.parts.projector


class PictureFeatures:
    """What the projector reads of every captioned picture, and what the model is given for it in a step.

    Args:
        path: where features are kept; they are read back if they are there already.

    Attributes:
        table: [pictures, tokens, d_vision], where the model reads the projector's output as it is; else None.
        means: mean of what the projector reads of each picture.

    Raises:
        UsageError: the model has no projector that can be trained.
    """

    table: Float[Tensor, "pictures tokens d_vision"] | None
    means: Float[Tensor, "pictures d_vision"]

    def __init__(self, vlm: VLM, captions: Sequence[CaptionedPicture], path: Path | None = None) -> None:
        self._vlm, self._projector, self._captions = vlm, require_projector(vlm), list(captions)
        self._stacked: bool | None = None  # families differ in whether they join the pictures themselves
        found = load_file(path) if path is not None and path.is_file() else self._encode()
        if path is not None and not path.is_file():
            with appearing(path) as partial:
                save_file(found, partial)
            found = load_file(path)  # mapped into memory
        self.table, self.means = found.get("features"), found["means"]

    def given(self, items: Sequence[int], inputs: Inputs) -> dict[str, Any]:
        """The model's arguments for the pictures of ``inputs``, which are those numbered ``items``."""
        if self.table is None:
            return self._vlm.tensors(inputs.pictures)
        return {"mm_encoder_outputs": {"image": self._output(self.projected(items))}}

    def projected(self, items: Sequence[int]) -> Float[Tensor, "pictures tokens d_model"]:
        """The projector's output, with gradient; only where there is a table."""
        assert self.table is not None
        return self._projector(self.table[list(items)].to(self._vlm.device, self._vlm.model.dtype))

    @torch.no_grad()
    def projected_means(self) -> Float[Tensor, "pictures d_model"]:
        """Mean of the projector's output for each picture; float32 on the CPU."""
        if self.table is None:
            return torch.stack([self._seen([item])[1].float().mean(0).cpu() for item in self._captions])
        rows = torch.arange(len(self._captions)).split(_BATCH)
        return torch.cat([self.projected(part.tolist()).mean(1).float().cpu() for part in rows])

    @torch.no_grad()
    def _encode(self) -> dict[str, Tensor]:
        table = self._encode_rows() if self._reads_as_it_is() else None
        if table is not None:
            return {"features": table, "means": table.mean(1)}
        return {"means": torch.stack([self._seen([item])[0].float().mean(0).cpu() for item in self._captions])}

    def _encode_rows(self) -> Tensor | None:
        """One block of tokens per picture; None when the pictures differ in it."""
        found = []
        for start in range(0, len(self._captions), _BATCH):
            chosen = self._captions[start : start + _BATCH]
            read, _, shape = self._seen(chosen)
            if shape[0] != len(chosen):
                return None
            found.append(read.reshape(shape).float().cpu())
        return torch.cat(found) if len({rows.shape[1:] for rows in found}) == 1 else None

    def _seen(self, items: Sequence[CaptionedPicture]) -> tuple[Tensor, Tensor, torch.Size]:
        """What the projector reads and gives [tokens, d] for pictures, and the shape in which it reads it."""
        seen: list[tuple[Tensor, Tensor]] = []
        handle = self._projector.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
        try:
            self._vlm.see(self._prepared(items))
        finally:
            handle.remove()
        if len(seen) != 1:
            raise UsageError(
                f"The projector of {type(self._vlm.model).__name__} runs {len(seen)} times for pictures.",
                "Text-guided alignment cannot be trained on this architecture yet.",
            )
        read, gave = seen[0]
        return read.reshape(-1, read.shape[-1]), gave.reshape(-1, gave.shape[-1]), read.shape

    def _prepared(self, items: Sequence[CaptionedPicture]) -> Inputs:
        return self._vlm.inputs.prepare([Request("", item.picture()) for item in items])

    def _reads_as_it_is(self) -> bool:
        """Whether the model takes the projector's output, a block of tokens per picture, instead of pixels."""
        inputs = self._prepared(self._captions[:1])
        if not self._vlm.features.usable_for(self._vlm.tensors(inputs.pictures)):
            return False
        _, gave, shape = self._seen(self._captions[:1])
        real = torch.cat(list(self._vlm.see(inputs).pooler_output))
        return shape[0] == 1 and real.shape == gave.shape and torch.allclose(real, gave, rtol=1e-3, atol=1e-4)

    def _output(self, projected: Tensor) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        if self._stacked is None:
            with torch.no_grad():
                self._stacked = isinstance(self._vlm.see(self._prepared(self._captions[:1])).pooler_output, Tensor)
        return BaseModelOutputWithPooling(pooler_output=projected if self._stacked else list(projected))


def run(
    vlm: VLM, inputs: Inputs, layers: Sequence[int], pictures: Mapping[str, Any] | None = None, tail: int = 1
) -> Pass:
    """One forward pass with gradient wherever something is trained.

    Args:
        pictures: see :meth:`PictureFeatures.given`.
        tail: positions at the end whose logits are wanted.
    """
    arguments = vlm.arguments(inputs, pictures=pictures or {})
    if "logits_to_keep" in inspect.signature(vlm.model.forward).parameters:
        arguments["logits_to_keep"] = tail
    states: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(vlm.parts.layers[layer].register_forward_hook(_keeper(states, layer)).remove)
        logits = vlm.model(**arguments, use_cache=False).logits
    return Pass(states, logits[:, -tail:])


def _keeper(states: dict[int, Tensor], layer: int):
    def keep(module: nn.Module, args: Any, output: Any) -> None:
        states[layer] = hidden_of(output)

    return keep


@torch.no_grad()
def caption_states(vlm: VLM, texts: Sequence[str], layers: Sequence[int]) -> dict[int, Float[Tensor, "texts d_model"]]:
    """Mean state of each text's own tokens, alone in a turn, per layer: float32 on the CPU. No gradient."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def read(some: Sequence[str]) -> dict[int, Tensor]:
        inputs, mask = caption_mask(vlm.inputs, some)
        states = run(vlm, inputs, layers).states
        return {layer: pooled(states[layer].float(), mask.to(vlm.device)).cpu() for layer in layers}

    for _, rows in dealt([texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH)], read):
        for layer in layers:
            found[layer].append(rows[layer])
    return {layer: torch.cat(rows) for layer, rows in found.items()}
