"""One attention node a layer: ``GroupQueryAttention`` of ONNX Runtime, emitted while a decoder is traced.

transformers lets an attention function be registered. Ours stands for the whole of a layer's attention: scores, mask,
softmax, the product with the values, and the growth of the KV cache. Rotary embedding becomes one node for the queries
and one for the keys, with cosines and sines computed once for all layers.

The operator knows lengths of rows instead of a mask: a row's tokens come first and its padding last. Our callers pad on
the left. So each layer's attention reads its row's tokens moved to the front, by as many places as the row is padded,
and its output is moved back; padding gets the output of the row's first token, which nobody reads. The cache keeps rows
in that order too. Without padding nothing moves.

Left to the exporter's own decomposition are decoders that :meth:`Family.attention_obstacle` names.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer

_NAME = "safetykit_grouped_query"
_ROTARY = "apply_rotary_pos_emb"


class NewLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of the cache whose update hands back only what is new: the attention node joins it with the past."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class GroupedQueries:
    """Attention of one call of a decoder.

    Attributes:
        layers: of the cache, in order; keys and values become the grown ones.
        moved: the modules whose hidden states came in the order of the attention.
        attended: which layers did attend so.
    """

    current: GroupedQueries | None = None

    def __init__(self, layers: list[Any], attention_mask: Tensor, new: int) -> None:
        """``attention_mask`` is [batch, total], of which the last ``new`` columns are this call's tokens."""
        self.layers, self.moved, self.attended = layers, set[nn.Module](), list[int]()
        self.total = attention_mask.shape[1]
        self.lengths = (attention_mask.sum(dim=1) - 1).to(torch.int32)
        self.total_length = torch.scalar_tensor(self.total, dtype=torch.int32)
        places = torch.arange(new, device=attention_mask.device)[None]
        padding = attention_mask[:, self.total - new :].argmax(dim=1, keepdim=True)
        self.to_front = (places + padding).clamp(max=new - 1)
        self.back = (places - padding).clamp(min=0)
        self._tables: dict[int, list[Tensor]] = {}

    def positions(self, position_ids: Tensor) -> Tensor:
        """Positions [..., batch, sequence] in the order of the attention."""
        return position_ids.gather(-1, self.to_front.expand_as(position_ids))

    def rotated(self, states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """States [batch, heads, sequence, width] turned by angles of cosine ``cos`` [batch, sequence, width]."""
        batch, heads, length, width = states.shape
        if id(cos) not in self._tables:
            numbers = torch.arange(batch * length, device=states.device).reshape(batch, length)
            halves = [part[..., : width // 2].reshape(batch * length, width // 2) for part in (cos, sin)]
            self._tables[id(cos)] = [numbers, *halves]
        flat = states.transpose(1, 2).reshape(batch, length, heads * width)
        turned = torch.onnx.ops.symbolic(
            "com.microsoft::RotaryEmbedding",
            [flat, *self._tables[id(cos)]],
            {"num_heads": heads, "rotary_embedding_dim": 0},
            dtype=states.dtype,
            shape=flat.shape,
            version=1,
        )
        return turned.reshape(batch, length, heads, width).transpose(1, 2)

    def attend(self, module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The attention's output [batch, sequence, heads, width] for its layer."""
        batch, heads, length, width = query.shape
        groups, at = key.shape[1], module.layer_idx
        layer = self.layers[at]
        flat = [part.transpose(1, 2).reshape(batch, length, -1) for part in (query, key, value)]
        grown = (batch, groups, self.total, width)
        mixed, layer.keys, layer.values = torch.onnx.ops.symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            [*flat, layer.keys, layer.values, self.lengths, self.total_length],
            {"num_heads": heads, "kv_num_heads": groups, "scale": float(scaling)},
            dtypes=[query.dtype] * 3,
            shapes=[flat[0].shape, grown, grown],
            version=1,
        )
        if module in self.moved:
            self.attended.append(at)
        return _moved(mixed, self.back).reshape(batch, length, heads, width)


def _moved(states: Tensor, places: Tensor) -> Tensor:
    """States [batch, sequence, width] of the tokens at ``places`` [batch, sequence] of their row."""
    return torch.onnx.ops.symbolic(
        "GatherND", [states, places[..., None]], {"batch_dims": 1}, dtype=states.dtype, shape=states.shape, version=13
    )


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """The attention function as transformers calls it."""
    assert GroupedQueries.current is not None
    return GroupedQueries.current.attend(module, query, key, value, scaling), None


AttentionInterface.register(_NAME, _attention)


@contextmanager
def grouped_queries(decoder: Any, layers: list[Any], attention_mask: Tensor, new: int) -> Iterator[GroupedQueries]:
    """Let ``decoder`` attend by one node a layer until the block ends.

    Args:
        layers: of the cache, each a :class:`NewLayer`.
        attention_mask, new: see :class:`GroupedQueries`.
    """
    call = GroupedQueries(layers, attention_mask, new)
    attentions = [
        module for module in decoder.modules() if hasattr(module, "layer_idx") and hasattr(module, "is_causal")
    ]
    former = decoder.config._attn_implementation
    with ExitStack() as stack:
        stack.callback(setattr, decoder.config, "_attn_implementation", former)
        decoder.config._attn_implementation = _NAME
        stack.enter_context(patch.object(GroupedQueries, "current", call))
        for attention in attentions:
            stack.callback(attention.register_forward_pre_hook(_to_front(call), with_kwargs=True).remove)
        for name in {type(attention).__module__ for attention in attentions}:
            if hasattr(sys.modules[name], _ROTARY):
                stack.enter_context(patch.object(sys.modules[name], _ROTARY, _rotary(call)))
        yield call


def _to_front(call: GroupedQueries) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call.moved.add(module)
        if args:
            return (_moved(args[0], call.to_front), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": _moved(kwargs["hidden_states"], call.to_front)}

    return hook


def _rotary(call: GroupedQueries) -> Any:
    def turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return call.rotated(query, cos, sin), call.rotated(key, cos, sin)

    return turned
