"""The three graphs of a model, as :func:`torch.onnx.export` wants them; what is special comes from the family.

One decoder graph covers prefill (``past_sequence`` = 0) and decode. It is traced with logits at all positions, which
teacher-forced parity and logit probes ask for; :mod:`.logits` lets others have the last alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from ...toolkit.cache_names import STATES
from ...toolkit.families import Family, GraphInput, family_of
from ...toolkit.families.cache import cache_of
from ...toolkit.families.family import SIZES
from ...toolkit.model.experts import experts_as_nodes
from ..manifest import GRAPHS, Graph
from ..names import ATTENTION_MASK, INPUT_IDS, INPUTS_EMBEDS, LOGITS, PAST, POSITION_IDS, PRESENT, cache_names
from .attention import NewLayer, grouped_queries, rotary_modules
from .recurrent import StateLayer, rules_as_nodes


@dataclass(frozen=True)
class GraphSpec:
    """One graph to export.

    Attributes:
        module: what computes it.
        args: example arguments for a dtype of weights; axes that vary must be 2 or more and distinct.
        dynamic: for every argument its symbolic axes, in the structure of ``args``.
        inputs: names of the flattened arguments.
        outputs: names of the outputs.
        taps: further outputs of ``module`` that name an inner value of the graph, and are not outputs of it.
    """

    module: nn.Module
    args: Callable[[torch.dtype], tuple[Any, ...]]
    dynamic: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    taps: tuple[str, ...] = ()


def graph_specs(model: nn.Module, *, fused: bool = True, wanted: Sequence[Graph] = GRAPHS) -> dict[Graph, GraphSpec]:
    """The graphs of a transformers model.

    Args:
        fused: see :func:`decoder_spec`.
        wanted: which of them.

    Raises:
        UsageError: the architecture, or this configuration of it, is not supported.
    """
    family = family_of(model.config, wanted)
    made: dict[Graph, Callable[[], GraphSpec]] = {
        "vision_encoder": lambda: vision_spec(model, family),
        "embed_tokens": lambda: embedding_spec(model.get_input_embeddings()),
        "decoder": lambda: decoder_spec(model, family, fused=fused),
    }
    return {name: made[name]() for name in wanted}


class VisionGraph(nn.Module):
    """Pictures to image features, as the family says."""

    def __init__(self, model: nn.Module, family: Family, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.family, self.names = model, family, tuple(names)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, then the taps."""
        return self.family.vision(self.model, **dict(zip(self.names, inputs, strict=True)))


class CachedDecoder(nn.Module):
    """Decoder blocks, final norm and LM head, with the KV cache as plain tensors."""

    def __init__(self, model: Any, family: Family, names: Sequence[str], *, fused: bool) -> None:
        super().__init__()
        self.model, self.family, self.names = model, family, tuple(names)
        self.fused = fused and family.attention_obstacle(model.config) is None
        self.rotary = rotary_modules(model.get_decoder()) if self.fused else ()
        self.states = [part.name in STATES for part, _ in cache_of(model.config.get_text_config())]

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        further: list[torch.Tensor],
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, ...]:
        """Logits [batch, sequence, vocab], then each layer's cache: keys and values [batch, heads, past + sequence,
        head_dim], or its states."""
        with experts_as_nodes(self), rules_as_nodes(self.model.get_decoder()):
            return self._traced(inputs_embeds, attention_mask, dict(zip(self.names, further, strict=True)), past)

    def _traced(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        named: dict[str, torch.Tensor],
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, ...]:
        if self.fused:
            cache, decoder = _cache(past, self.states, NewLayer), self.model.get_decoder()
            new = inputs_embeds.shape[1]
            with grouped_queries(decoder, cache.layers, attention_mask, new, self.rotary) as call:
                placed = named | {POSITION_IDS: call.positions(named[POSITION_IDS])}
                logits = self.family.decoder(self.model, inputs_embeds, attention_mask, cache, **placed)
            if call.attended == [at for at, states in enumerate(self.states) if not states]:
                return _outputs(logits, cache)
            # The model does not attend by transformers' interface: what was traced is left unused.
        cache = _cache(past, self.states, DynamicLayer)
        return _outputs(self.family.decoder(self.model, inputs_embeds, attention_mask, cache, **named), cache)


def vision_spec(model: nn.Module, family: Family) -> GraphSpec:
    """The vision graph."""
    wanted, example = family.vision_inputs(model.config), family.vision_example(model.config)
    names = tuple(one.name for one in wanted)

    def args(dtype: torch.dtype) -> tuple[Any, ...]:
        return tuple(_tensor(example[one.name], one, dtype) for one in wanted)

    return GraphSpec(
        module=VisionGraph(model, family, names),
        args=args,
        dynamic=(tuple(_axes(one) for one in wanted),),
        inputs=names,
        outputs=family.vision_outputs,
        taps=family.taps_of(model),
    )


def decoder_spec(model: nn.Module, family: Family, *, fused: bool = True) -> GraphSpec:
    """The decoder graph.

    Args:
        fused: attend by one node a layer, where the family can.
    """
    text = model.config.get_text_config()
    further = family.decoder_inputs(model.config)
    names = tuple(one.name for one in further)
    embeds = GraphInput(INPUTS_EMBEDS, "weights", ("batch", "sequence", text.hidden_size))
    mask = GraphInput(ATTENTION_MASK, "int64", ("batch", "total"))
    cache = cache_of(text)
    parts = [[part.name for part in layer] for layer in cache]

    def args(dtype: torch.dtype) -> tuple[Any, ...]:
        def example(one: GraphInput) -> torch.Tensor:
            return _tensor(one.example(), one, dtype)

        past = [(example(first), example(second)) for first, second in cache]
        return example(embeds), torch.ones_like(example(mask)), [example(one) for one in further], past

    of_cache = [tuple(_axes(part) for part in layer) for layer in cache]
    return GraphSpec(
        module=CachedDecoder(model, family, names, fused=fused),
        args=args,
        dynamic=(_axes(embeds), _axes(mask), [_axes(one) for one in further], of_cache),
        inputs=(INPUTS_EMBEDS, ATTENTION_MASK, *names, *cache_names(parts, PAST)),
        outputs=(LOGITS, *cache_names(parts, PRESENT)),
    )


def embedding_spec(embed_tokens: nn.Module) -> GraphSpec:
    """``input_ids`` [batch, sequence] int64 to ``inputs_embeds`` [batch, sequence, d_model]."""
    return GraphSpec(
        module=embed_tokens,
        args=lambda dtype: (torch.zeros(SIZES["batch"], SIZES["sequence"], dtype=torch.int64),),
        dynamic=({0: "batch", 1: "sequence"},),
        inputs=(INPUT_IDS,),
        outputs=(INPUTS_EMBEDS,),
    )


def _axes(one: GraphInput) -> dict[int, str]:
    return {axis: size for axis, size in enumerate(one.shape) if isinstance(size, str)}


def _tensor(array: np.ndarray, one: GraphInput, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.to(dtype) if one.dtype == "weights" else tensor


def _outputs(logits: torch.Tensor, cache: DynamicCache) -> tuple[torch.Tensor, ...]:
    parts = (layer.tensors if isinstance(layer, StateLayer) else (layer.keys, layer.values) for layer in cache.layers)
    return logits, *(tensor for pair in parts for tensor in pair)


def _cache(
    past: list[tuple[torch.Tensor, torch.Tensor]], states: Sequence[bool], kind: type[DynamicLayer]
) -> DynamicCache:
    cache = DynamicCache()
    cache.layers = []
    for (key, value), keeps in zip(past, states, strict=True):
        # Filled by hand: `update` on an empty layer would trace the joining with an empty tensor.
        layer = StateLayer(key, value) if keeps else kind()
        if not keeps:
            layer.keys, layer.values = key, value
            layer.dtype, layer.device = key.dtype, key.device
            layer.is_initialized = True
        cache.layers.append(layer)
    return cache
