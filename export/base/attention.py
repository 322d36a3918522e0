"""One attention node a layer: ``GroupQueryAttention`` of ONNX Runtime, emitted while a decoder is traced.

transformers lets an attention function be registered. Ours stands for the whole of a layer's attention: scores, mask,
softmax, the product with the values, and the growth of the KV cache. Rotary embedding becomes one node for the queries
and one for the keys, with cosines and sines computed once for all layers.

The operator knows lengths of rows instead of a mask: a row's tokens come first and its padding last. Our callers pad on
the left. So each layer's attention reads its row's tokens moved to the front, by as many places as the row is padded,
and what it gives is moved back; padding gets the output of the row's first token, which nobody reads. The cache keeps
rows in that order too. Without padding nothing moves.

Left to the exporter's own decomposition are decoders that :meth:`Family.attention_obstacle` names, those that attend
otherwise than said here (soft caps, windows, sinks, or not by transformers' interface), and rotary embeddings that turn
other pairs of channels than a half with the other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer

_NAME = "safetykit_grouped_query"
_ROTARY = "apply_rotary_pos_emb"
_OUTPUT = "o_proj"  # what transformers calls the output projection of its attentions
_PLAIN = frozenset(("dropout", "position_ids", "cache_position", "use_cache"))  # what changes nothing here

Rotary = Callable[..., tuple[Tensor, Tensor]]


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
        """States [batch, heads, sequence, width] turned by angles of cosine ``cos`` [batch, sequence, turned]: their
        first ``turned`` channels, all of them or fewer."""
        batch, heads, length, width = states.shape
        turned = cos.shape[-1]
        if id(cos) not in self._tables:
            numbers = torch.arange(batch * length, device=states.device).reshape(batch, length)
            halves = [part[..., : turned // 2].reshape(batch * length, turned // 2) for part in (cos, sin)]
            self._tables[id(cos)] = [numbers, *halves]
        flat = states.transpose(1, 2).reshape(batch, length, heads * width)
        done = torch.onnx.ops.symbolic(
            "com.microsoft::RotaryEmbedding",
            [flat, *self._tables[id(cos)]],
            {"num_heads": heads, "rotary_embedding_dim": 0 if turned == width else turned},
            dtype=states.dtype,
            shape=flat.shape,
            version=1,
        )
        return done.reshape(batch, length, heads, width).transpose(1, 2)

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
        return mixed.reshape(batch, length, heads, width)


def _moved(states: Tensor, places: Tensor) -> Tensor:
    """States [batch, sequence, width] of the tokens at ``places`` [batch, sequence] of their row."""
    return torch.onnx.ops.symbolic(
        "GatherND", [states, places[..., None]], {"batch_dims": 1}, dtype=states.dtype, shape=states.shape, version=13
    )


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **further: Any
) -> tuple[Tensor, None]:
    """The attention function as transformers calls it."""
    call = GroupedQueries.current
    assert call is not None
    asked = {name for name, value in further.items() if value is not None and value is not False}
    if asked - _PLAIN or not getattr(module, "is_causal", True):
        call.moved.discard(module)  # a soft cap, a window, sinks: the node computes none of them
    return call.attend(module, query, key, value, scaling), None


AttentionInterface.register(_NAME, _attention)


def rotary_modules(decoder: nn.Module) -> tuple[str, ...]:
    """The modules of transformers whose rotary embedding ``decoder`` uses and the operator computes too: channel i of a
    head is turned with channel i + width / 2."""
    names = {type(attention).__module__ for attention in _attentions(decoder)}
    found = {name: getattr(sys.modules[name], _ROTARY, None) for name in names}
    return tuple(sorted(name for name, rotary in found.items() if rotary is not None and _turns_halves(rotary)))


def _turns_halves(rotary: Rotary) -> bool:
    random = torch.Generator().manual_seed(0)
    query, key = (torch.randn(shape, generator=random) for shape in ((1, 2, 3, 8), (1, 1, 3, 8)))
    found = [_turns_first(rotary, query, key, torch.randn(1, 3, turned // 2, generator=random)) for turned in (8, 4)]
    return found[0] is True and found[1] is not False


def _turns_first(rotary: Rotary, query: Tensor, key: Tensor, half: Tensor) -> bool | None:
    """Whether as many channels as there are angles are turned, a half with the other, and the rest stays; None if it
    cannot be asked so."""
    angles = torch.cat([half, half], dim=-1)
    cos, sin, turned, middle = angles.cos(), angles.sin(), angles.shape[-1], half.shape[-1]
    try:
        found = rotary(query, key, cos, sin)
    except (RuntimeError, TypeError):  # it wants other sizes, or more
        return None
    for states, theirs in zip((query, key), found, strict=True):
        first = states[..., :turned]
        other = torch.cat([-first[..., middle:], first[..., :middle]], dim=-1)
        expected = torch.cat([first * cos + other * sin, states[..., turned:]], dim=-1)
        if expected.shape != theirs.shape or not torch.allclose(expected, theirs, atol=1e-5):
            return False
    return True


def _attentions(decoder: nn.Module) -> list[nn.Module]:
    return [module for module in decoder.modules() if hasattr(module, "layer_idx") and hasattr(module, "is_causal")]


@contextmanager
def grouped_queries(
    decoder: Any, layers: list[Any], attention_mask: Tensor, new: int, rotary: Collection[str]
) -> Iterator[GroupedQueries]:
    """Let ``decoder`` attend by one node a layer until the block ends.

    Args:
        layers: of the cache, each a :class:`NewLayer`.
        attention_mask, new: see :class:`GroupedQueries`.
        rotary: see :func:`rotary_modules`.
    """
    call = GroupedQueries(layers, attention_mask, new)
    attentions = _attentions(decoder)
    former = decoder.config._attn_implementation
    with ExitStack() as stack:
        stack.callback(setattr, decoder.config, "_attn_implementation", former)
        decoder.config._attn_implementation = _NAME
        stack.enter_context(patch.object(GroupedQueries, "current", call))
        for attention in attentions:
            stack.callback(attention.register_forward_pre_hook(_to_front(call), with_kwargs=True).remove)
            stack.callback(_moved_back(attention, call).remove)
        for name in rotary:
            stack.enter_context(patch.object(sys.modules[name], _ROTARY, _rotary(call)))
        yield call


def _to_front(call: GroupedQueries) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call.moved.add(module)
        if args:
            return (_moved(args[0], call.to_front), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": _moved(kwargs["hidden_states"], call.to_front)}

    return hook


def _moved_back(attention: nn.Module, call: GroupedQueries) -> RemovableHandle:
    """Before its output projection, so that a bias after that can still join it; else what the module gives.

    Whatever else the module computes of its states, such as a gate, is in the order of the attention until there.
    """

    def before(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_moved(states[0], call.back), *states[1:])

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if torch.is_tensor(output):
            return _moved(output, call.back)
        return (_moved(output[0], call.back), *output[1:])

    projection = getattr(attention, _OUTPUT, None)
    if isinstance(projection, nn.Module):
        return projection.register_forward_pre_hook(before)
    return attention.register_forward_hook(after)


def _rotary(call: GroupedQueries) -> Any:
    def turned(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return call.rotated(query, cos, sin), call.rotated(key, cos, sin)

    return turned
