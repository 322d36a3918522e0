"""Models whose parameters have types and shapes only."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def without_weights(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy whose parameters have types and shapes only; those of floats become ``dtype``, tied ones stay tied."""
    empty: dict[int, nn.Parameter] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for parameter in module.parameters():
            kind = dtype if parameter.is_floating_point() else parameter.dtype
            empty[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=kind), requires_grad=False)
    return copy.deepcopy(module, dict(empty)).eval()
