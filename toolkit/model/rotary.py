"""Rotary embeddings whose frequencies depend on how long a sequence is: by each row's own length.

``longrope`` takes other factors beyond the length of pretraining, ``dynamic`` another base for every length beyond the
model's. transformers works with the longest row of a batch, padding of others or not, and for ``dynamic`` with the
longest so far: an answer then depends on what stands beside it. Here each row has the frequencies that it has alone and
first, in PyTorch and, since the same module is traced, in graphs.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_LONG, _DYNAMIC = "longrope", "dynamic"


def rows_apart(model: nn.Module) -> None:
    """Let the rotary embeddings of a model whose frequencies depend on lengths take each row's own."""
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        named = types.values() if isinstance(types, Mapping) else (types,)
        if hasattr(module, "config") and any(_depends(one) for one in named):
            kept = "_old_forward" if hasattr(module, "_old_forward") else "forward"  # accelerate's hooks call the first
            setattr(module, kept, MethodType(_turned, module))


def _depends(rope_type: Any) -> bool:
    return isinstance(rope_type, str) and (rope_type == _LONG or _DYNAMIC in rope_type)


class _Seen:
    """A rotary embedding with other values of some attributes."""

    def __init__(self, module: nn.Module, values: Mapping[str, Any]) -> None:
        self._module, self._values = module, values

    def __getattr__(self, name: str) -> Any:
        return self._values[name] if name in self._values else getattr(self._module, name)


@torch.no_grad()
def _turned(self: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
    """What transformers' ``forward`` makes of frequencies [batch, 1, channels] in the place of those of all rows."""
    named = {} if layer_type is None else {"layer_type": layer_type}
    rope_type = self.rope_type if layer_type is None else self.rope_type[layer_type]
    values = {}
    if _depends(rope_type):
        prefix = "" if layer_type is None else f"{layer_type}_"
        values[f"{prefix}inv_freq"] = _frequencies(self, rope_type, position_ids, layer_type, prefix).unsqueeze(-2)
    forward = inspect.unwrap(type(self).forward)
    turned: tuple[Tensor, Tensor] = forward(_Seen(self, values), x, position_ids, **named)
    return turned


def _frequencies(
    module: Any, rope_type: str, position_ids: Int[Tensor, "... batch seq"], layer_type: str | None, prefix: str
) -> Float[Tensor, "... batch channels"]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    length = position_ids.amax(dim=-1, keepdim=True) + 1
    if length.ndim > 2:  # positions in time and space
        length = length.amax(dim=0, keepdim=True)
    make, device = ROPE_INIT_FUNCTIONS[rope_type], position_ids.device
    if rope_type != _LONG:
        found: Tensor = make(module.config, device, seq_len=length, layer_type=layer_type)[0]
        return found
    settings = module.config.rope_parameters if layer_type is None else module.config.rope_parameters[layer_type]
    most = settings["original_max_position_embeddings"]
    long, _ = make(module.config, device, seq_len=most + 1, layer_type=layer_type)
    short = getattr(module, f"{prefix}original_inv_freq").to(device)
    return torch.where(length > most, long.to(device), short)
