"""The adapters that a swap comes to, for PyTorch: what is in an export or a file is numbers only."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.files import MANIFEST
from ...adapters.artifact.hub import located
from ...adapters.artifact.store import load_adapter
from ...adapters.artifact.updates import WeightUpdate
from ..manifest import ExportManifest
from ..runtime.hotswap import Swap

_UPDATE = "update."


def adapters_of(
    sources: Sequence[Adapter | Path | str], own: Sequence[Adapter], manifest: ExportManifest, swap: Swap
) -> list[Adapter]:
    """What the export runs with once ``sources`` are swapped in.

    Args:
        own: the adapters that the export was made of.
        swap: what the runtime made of ``sources``.
    """
    folders = [source for source in sources if not isinstance(source, Adapter)]
    if all((located(folder) / MANIFEST).is_file() for folder in folders):
        return [source if isinstance(source, Adapter) else load_adapter(Path(source)) for source in sources]
    return with_parameters(own, manifest, swap)


def with_parameters(own: Sequence[Adapter], manifest: ExportManifest, swap: Swap) -> list[Adapter]:
    """``own`` with the numbers of ``swap``: parameters of ops and branch, updates of weights, and the detector."""
    values = {one.source: _plain(swap.arrays[one.name], one.transposed) for one in manifest.parameters}
    updates, numbers, made = _updates(values), count(), []
    for adapter in own:
        items = []
        for item in adapter.interventions:
            index = next(numbers)
            tensors = {name: _like(old, values[f"{index}.{name}"]) for name, old in item.tensors.items()}
            items.append(dataclasses.replace(item, tensors=tensors))
        branch = adapter.branch
        if branch is not None:
            tensors = {name: _like(old, values[f"branch.{name}"]) for name, old in branch.tensors.items()}
            branch = dataclasses.replace(branch, tensors=tensors)
        mine: tuple[WeightUpdate, ...] = ()
        if adapter.updates:  # those of all adapters act together, before any intervention
            mine, updates = tuple(updates), []
        detector = swap.detector if adapter.detector is not None else None
        made.append(
            dataclasses.replace(adapter, interventions=tuple(items), branch=branch, updates=mine, detector=detector)
        )
    return made


def _plain(array: np.ndarray, transposed: bool) -> np.ndarray:
    return np.ascontiguousarray(array.T if transposed else array)


def _like(old: Tensor, array: np.ndarray) -> Tensor:
    """Scalars are vectors of one number in a graph whose parameters can be swapped."""
    return torch.from_numpy(array.reshape(()) if old.ndim == 0 else array).to(old.dtype)


def _updates(values: Mapping[str, np.ndarray]) -> list[WeightUpdate]:
    """Updates by their sources: ``update.<name>``, or ``.up`` and ``.down`` of it, which a graph has transposed."""
    found: dict[str, dict[str, Tensor]] = {}
    for source, array in values.items():
        if not source.startswith(_UPDATE):
            continue
        name, part = source.removeprefix(_UPDATE), "value"
        for ending in ("up", "down"):
            if name.endswith(f".{ending}"):
                name, part, array = name.removesuffix(f".{ending}"), ending, array.T
        found.setdefault(name, {})[part] = torch.from_numpy(np.array(array, np.float32, order="C"))
    return [WeightUpdate(name, tensors) for name, tensors in sorted(found.items())]
