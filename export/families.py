"""Model families whose base graphs safetykit can export, as a registry.

A family is one small file that calls :func:`register` with a function from the transformers model to
three :class:`GraphSpec`. Anything else is refused by name: a graph exported on a guess can be wrong
in ways no checker sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..adapters.errors import UsageError
from .layout import Graph

Axes = dict[int, str]


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


@dataclass(frozen=True)
class Family:
    """How to export one architecture.

    Attributes:
        name: ``model_type`` of its configuration.
        build: from the model to its graphs; raises UsageError for a configuration it cannot export.
    """

    name: str
    build: Callable[[nn.Module], dict[Graph, GraphSpec]]


_FAMILIES: dict[str, Family] = {}

# Why the obvious candidates are not exported yet.
_REASONS = {
    "paligemma": "its attention mask is built outside the decoder",
    "gemma3": "its image tokens attend in both directions, which a bare decoder graph loses",
    "idefics3": "its vision position code depends on the data",
    "smolvlm": "its vision position code depends on the data",
    "qwen2_vl": "its vision tower needs the picture grid as an input",
    "qwen2_5_vl": "its vision tower needs the picture grid and window index as inputs",
}


def register(family: Family) -> Family:
    """Add a family.

    Raises:
        TypeError: the name is taken.
    """
    if family.name in _FAMILIES:
        raise TypeError(f"Two families are called {family.name!r}.")
    _FAMILIES[family.name] = family
    return family


def family_of(model: nn.Module) -> Family:
    """The family of a transformers model.

    Raises:
        UsageError: the architecture is not supported; the message says why when that is known.
    """
    from . import llava  # noqa: F401  registers itself

    name = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if name not in _FAMILIES:
        reason = f": {_REASONS[name]}" if name in _REASONS else ""
        raise UsageError(
            f"safetykit has no base export for the architecture {name!r}{reason}.",
            f"It exports {', '.join(sorted(_FAMILIES))}; for others pass graphs made elsewhere with --base-onnx.",
        )
    return _FAMILIES[name]


def exportable(model: nn.Module) -> dict[str, Any]:
    """Whether a model's base graphs can be exported, and if not, why."""
    try:
        return {"supported": True, "family": family_of(model).name, "reason": None}
    except UsageError as error:
        return {"supported": False, "family": None, "reason": str(error)}


def compute_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's floating-point weights."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
