"""Layers with states instead of keys and values (gated delta rule: Qwen3.5), for any number of tokens in one graph.

PyTorch computes a prompt in chunks and a step by itself, with loops over lengths that tracing would fix. Here both are
one scan over the tokens:

    S ← exp(g) · S;   S ← S + k ⊗ β (v − Sᵀ k);   o = Sᵀ q        (Yang et al. 2024, arXiv:2412.06464, eq. 10)

with a state S [key, value] for each head, in float32. A layer's cache is the last inputs of its convolution,
``conv_state`` [batch, channels, kernel], and S of all heads, ``recurrent_state`` [batch, heads, key, value]; both are
zero before the first token. Padding before a prompt leaves them zero: the model masks it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers.cache_utils import LinearAttentionLayer

from .scans import Nodes, function, traced

DOMAIN, NODE = "recurrent", "GatedDeltaRule"
_RULE = "torch_chunk_gated_delta_rule"  # how transformers calls the function that is replaced
_SIZES = {"batch": 2, "heads": 3, "key": 4, "value": 5}  # of the example that a step is traced with


class StateLayer(LinearAttentionLayer):  # type: ignore[misc]
    """The cache of such a layer; updates make new tensors."""

    def __init__(self, conv_state: Tensor, recurrent_state: Tensor) -> None:
        super().__init__()
        self.conv_states[0], self.recurrent_states[0] = conv_state, recurrent_state
        self.is_conv_states_initialized[0] = self.is_recurrent_states_initialized[0] = True
        self.has_previous_state[0], self.conv_kernel_size[0] = True, conv_state.shape[-1]

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """Both states."""
        return self.conv_states[0], self.recurrent_states[0]

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        joined = torch.cat([self.conv_states[state_idx], conv_states], dim=-1)
        self.conv_states[state_idx] = joined[..., -self.conv_kernel_size[state_idx] :]
        return joined

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **_: Any) -> Tensor:
        self.recurrent_states[state_idx] = recurrent_states
        return recurrent_states


@contextmanager
def rules_as_nodes(decoder: nn.Module) -> Iterator[None]:
    """Let the layers of a decoder compute the rule as one node each until the block ends."""
    places = {type(module).__module__ for module in decoder.modules()}
    with ExitStack() as stack:
        for place in places:
            if hasattr(sys.modules[place], _RULE):
                stack.enter_context(patch.object(sys.modules[place], _RULE, _rule))
        yield


def _rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """As transformers calls it: states [batch, tokens, heads, width], g and β [batch, tokens, heads]."""
    times, dtype = value.shape[2] // key.shape[2], query.dtype
    query, key = (part.repeat_interleave(times, dim=2) if times > 1 else part for part in (query, key))
    query, key, value, g, beta = (part.float().transpose(0, 1) for part in (query, key, value, g, beta))
    if use_qk_l2norm_in_kernel:
        query, key = (part * torch.rsqrt((part * part).sum(-1, keepdim=True) + 1e-6) for part in (query, key))
    query = query / query.shape[-1] ** 0.5
    state = initial_state.float()
    state, mixed = torch.onnx.ops.symbolic_multi_out(
        f"{DOMAIN}::{NODE}",
        [state, query, key, value, g, beta],
        dtypes=[torch.float32] * 2,
        shapes=[state.shape, value.shape],
        version=1,
    )
    return mixed.transpose(0, 1).to(dtype), state.to(initial_state.dtype)


class _Step(nn.Module):
    """The rule for one token."""

    def forward(
        self, state: Tensor, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        state = state * g.exp()[..., None, None]
        held = (state * key[..., None]).sum(-2)
        state = state + key[..., None] * ((value - held) * beta[..., None])[..., None, :]
        return state, (state * query[..., None]).sum(-2)


def add_rules(model: ir.Model, opset: int) -> None:
    """Give a decoder's nodes of the rule the function that computes it, in place; other graphs stay as they are."""
    if any((node.domain, node.op_type) == (DOMAIN, NODE) for node in model.graph):
        made = _function(opset)
        model.functions[made.identifier()] = made


def _function(opset: int) -> ir.Function:
    """(state, query, key, value, g, beta), all but the state with the tokens first → (state, mixed)."""
    names, nodes, inside = ("query", "key", "value", "g", "beta"), Nodes("rule"), Nodes("rule.step")
    whole = [ir.val(f"rule.{name}", ir.DataType.FLOAT) for name in ("state", *names)]
    part = [ir.val(f"rule.step.{name}", ir.DataType.FLOAT) for name in ("state", *names)]
    rows = [_SIZES[one] for one in ("batch", "heads")]
    axes = {0: "batch", 1: "heads"}
    example, dynamic = [torch.zeros(*rows, _SIZES["key"], _SIZES["value"])], [axes | {2: "key", 3: "value"}]
    for last in ("key", "key", "value"):
        example.append(torch.zeros(*rows, _SIZES[last]))
        dynamic.append(axes | {2: last})
    model = traced(_Step().eval(), (*example, *(torch.zeros(rows) for _ in range(2))), (*dynamic, axes, axes), opset)
    outputs = inside.inline(model, part)
    body = ir.Graph(part, outputs, nodes=inside, name="step")
    results = nodes.scan(body, whole[:1], whole[1:], 2)
    return function(DOMAIN, NODE, whole, results, nodes, opset)
