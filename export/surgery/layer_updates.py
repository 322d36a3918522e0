"""What changes in each layer of the base, before any graph is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...adapters.artifact.updates import WeightUpdate
from ...adapters.errors import UsageError
from ..manifest import Graph

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM


@dataclass(frozen=True)
class LayerUpdate:
    """What changes in one layer of the base.

    Attributes:
        layer: its name in the base model.
        graph: which graph computes it.
        old: its parameters as the base has them, float32; a bias may be missing.
        new: those that change, float32.
    """

    layer: str
    graph: Graph
    old: Mapping[str, np.ndarray]
    new: Mapping[str, np.ndarray]


def plan_updates(vlm: VLM, updates: Sequence[WeightUpdate]) -> tuple[LayerUpdate, ...]:
    """The net change of ``updates``, layer by layer; several of one parameter act in order.

    Raises:
        InvalidArtifact: a parameter does not exist or has another shape.
        UsageError: a weight is tied, or is computed in no graph that can be updated.
    """
    from ...toolkit.model.updates import find_changes

    layers: dict[str, LayerUpdate] = {}
    for change in find_changes(vlm.model, updates, vlm.weights, torch.float32):
        if change.layer not in layers:
            own = change.module.named_parameters(recurse=False)
            old = {name: _array(vlm.weights.of(value).whole()) for name, value in own}
            layers[change.layer] = LayerUpdate(change.layer, _graph_of(vlm, change.layer), old, {})
        found = layers[change.layer]
        layers[change.layer] = replace(found, new={**found.new, change.leaf: _array(change.new)})
    return tuple(layers.values())


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def _graph_of(vlm: VLM, layer: str) -> Graph:
    module, parts = vlm.model.get_submodule(layer), vlm.parts
    if module is parts.embed_tokens:
        raise UsageError(f"{layer} is the token embedding, which is not updated in exports.", "Leave it out.")
    if any(module is one for part in (parts.tower, parts.projector) if part is not None for one in part.modules()):
        return "vision_encoder"
    if any(
        module is one
        for part in (*parts.layers, parts.final_norm, parts.head)
        if part is not None
        for one in part.modules()
    ):
        return "decoder"
    raise UsageError(
        f"{layer} lies in neither tower, projector, decoder blocks, final norm nor head.",
        "Updates of other parts are not exported.",
    )
