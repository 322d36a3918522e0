"""Hidden states of every decoder layer from one forward pass per batch, for the measures that need all records at once.

Kept are two vectors per record and layer in float32, for at most a fixed number of records: 1024 records of a
model with 32 layers of width 4096 are 1.1 GB.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..data.records import Record
from ..distributed.dealing import dealt
from ..model.asking import request_of
from ..model.outputs import hidden_of
from ..model.requests import Inputs
from .patching import last_logits

if TYPE_CHECKING:
    from ..model.vlm import VLM


@dataclass(frozen=True)
class LayerStates:
    """States of records, in their order.

    Attributes:
        last: at the last prompt position; layer 0 is the decoder's *input*, layer l + 1 the output of block l.
        after_picture: mean over the text behind the picture; zeros for records without one.
    """

    records: tuple[Record, ...]
    last: Float[np.ndarray, "records layers_and_input d_model"]
    after_picture: Float[np.ndarray, "records layers_and_input d_model"]

    def where(self, wanted: Callable[[Record], bool]) -> LayerStates:
        """The states of some of the records."""
        kept = np.array([wanted(record) for record in self.records], dtype=bool)
        chosen = tuple(record for record, keep in zip(self.records, kept, strict=True) if keep)
        return LayerStates(chosen, self.last[kept], self.after_picture[kept])

    @property
    def harmful(self) -> Bool[np.ndarray, " records"]:
        return np.array([record.label == "harmful" for record in self.records], dtype=bool)


@torch.inference_mode()
def layer_states(
    vlm: VLM, records: Sequence[Record], batch_size: int, tick: Callable[[], None] = lambda: None
) -> LayerStates:
    """Run the records, one forward pass per ``batch_size`` of them."""
    order = sorted(range(len(records)), key=lambda at: (records[at].pictured, records[at].length))
    shape = (len(records), len(vlm.parts.layers) + 1, vlm.base.d_model)
    last, after = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def read(chosen: list[int]) -> tuple[Float[np.ndarray, "rows layers d"], Float[np.ndarray, "rows layers d"]]:
        inputs = vlm.inputs.prepare([request_of(records[at]) for at in chosen])
        weights = _behind_pictures(inputs).to(vlm.device)
        seen: list[Tensor] = []
        with ExitStack() as stack:
            _watch(vlm, seen, stack)
            last_logits(vlm, vlm.arguments(inputs))
        ends = [hidden[:, -1].float().cpu().numpy() for hidden in seen]
        means = [(hidden.float() * weights[..., None]).sum(1).cpu().numpy() for hidden in seen]
        return np.stack(ends, 1), np.stack(means, 1)

    for chosen, (ends, means) in dealt(batches, read):
        last[chosen], after[chosen] = ends, means
        tick()
    return LayerStates(tuple(records), last, after)


def _watch(vlm: VLM, seen: list[Tensor], stack: ExitStack) -> None:
    """Have a forward pass append the decoder's input and every block's output to ``seen``."""

    def before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    def after(module: nn.Module, args: tuple, output: Any) -> None:
        seen.append(hidden_of(output))

    stack.callback(vlm.parts.layers[0].register_forward_pre_hook(before, with_kwargs=True).remove)
    for layer in vlm.parts.layers:
        stack.callback(layer.register_forward_hook(after).remove)


def _behind_pictures(inputs: Inputs) -> Float[Tensor, "batch seq"]:
    """Weights that average over the tokens behind the last image token; zeros where there is no picture."""
    vision = inputs.vision_mask
    behind = np.cumsum(vision[:, ::-1], axis=1)[:, ::-1] == 0
    chosen = (behind & inputs.attention_mask.astype(bool) & vision.any(1, keepdims=True)).astype(np.float32)
    return torch.from_numpy(chosen / chosen.sum(1, keepdims=True).clip(1))
