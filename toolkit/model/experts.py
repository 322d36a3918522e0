"""Mixtures of experts as a graph has them: one node that computes what a layer's experts give together.

transformers lets the computation of experts be registered. Ours stands for all of it while a decoder is traced: which
rows an expert sees depends on the values, and no part of that may be fixed by the rows of an example.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

DOMAIN, NODE = "moe", "Experts"
_NAME = "safetykit_experts"


def weights_of(experts: nn.Module) -> dict[str, Tensor]:
    """Its parameters, each of which has the experts along its first axis."""
    return dict(experts.named_parameters(recurse=False))


class OneExpert(nn.Module):
    """What one expert of a layer computes, its weights given."""

    def __init__(self, experts: Any) -> None:
        super().__init__()
        self.experts, self.names = experts, tuple(weights_of(experts))

    def forward(self, rows: Tensor, *weights: Tensor) -> Tensor:
        """Rows [n, d_model] to rows [n, d_model]."""
        given = dict(zip(self.names, weights, strict=True))
        inner = self._product(rows, given, "gate_up_proj" if self.experts.has_gate else "up_proj")
        inner = self.experts._apply_gate(inner) if self.experts.has_gate else self.experts.act_fn(inner)
        return self._product(inner, given, "down_proj")

    def _product(self, rows: Tensor, given: dict[str, Tensor], name: str) -> Tensor:
        weight, bias = given[name], given.get(f"{name}_bias")
        return linear(rows, weight.T if self.experts.is_transposed else weight, bias)


def experts_in(model: nn.Module) -> dict[str, nn.Module]:
    """Modules whose computation can be registered, by their names."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "_is_expert_parallel")}


@contextmanager
def experts_as_nodes(model: nn.Module) -> Iterator[None]:
    """Let the experts of a model be one node a layer until the block ends."""
    found = experts_in(model)
    if not found:
        yield
        return
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(_NAME, _node)
    names = {id(module): name for name, module in found.items()}
    configs: dict[int, Any] = {id(module.config): module.config for module in found.values()}
    with ExitStack() as stack:
        for module in found.values():
            module._called = names[id(module)]  # type: ignore[assignment]
            stack.callback(delattr, module, "_called")
        for config in configs.values():
            stack.callback(setattr, config, "_experts_implementation", config._experts_implementation)
            config._experts_implementation = _NAME
        yield


def _node(experts: Any, states: Tensor, index: Tensor, shares: Tensor) -> Tensor:
    """The computation as transformers calls it: states [tokens, d_model], of each token its experts [tokens, k] and
    their shares [tokens, k]."""
    if experts.has_post_expert_norm:
        raise NotImplementedError("experts that end in a norm")
    made: Tensor = torch.onnx.ops.symbolic(
        f"{DOMAIN}::{NODE}",
        [states, index, shares, *weights_of(experts).values()],
        {"layer": experts._called},
        dtype=states.dtype,
        shape=states.shape,
        version=1,
    )
    return made
