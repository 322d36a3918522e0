"""Checkpoints of a training run: the trained parameters, the optimizer's moments and the curve so far.

Two files that are never pickled. Batches depend on the step alone and nothing else is random, so a run that goes on
from a checkpoint does what an uninterrupted one would have done, bit by bit on the CPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ...adapters.artifact.held import begins_anew
from ...adapters.artifact.kept import Identity, digests, goes_on
from ...adapters.artifact.manifest import canonical_json
from ...adapters.artifact.output import atomic_folder
from ..distributed.output import of_first

_TENSORS, _STATE = "checkpoint.safetensors", "checkpoint.json"


class Checkpoint:
    """Where a run keeps its state.

    Args:
        folder: replaced as a whole with every save; None keeps nothing.
        identity: what the run depends on, by the words in which a user is told of it.
    """

    def __init__(self, folder: Path | None, identity: Identity) -> None:
        self._folder, self._identity = folder, identity

    def require(self) -> None:
        """Refuse a checkpoint of another run; worth calling before long work.

        Raises:
            UsageError: as :meth:`restore`.
        """

        def refuse() -> None:
            if self._folder is not None and not begins_anew(self._folder.parent):
                self._read()

        of_first(refuse)

    def save(
        self,
        step: int,
        parameters: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        curve: Sequence[Mapping[str, float]],
    ) -> None:
        """Keep the state after ``step`` steps."""
        if self._folder is None:
            return
        tensors = {f"value.{name}": item.detach().cpu() for name, item in parameters.items()}
        for name, item in parameters.items():
            for key, value in optimizer.state[item].items():
                tensors[f"{key}.{name}"] = torch.as_tensor(value).detach().cpu()
        state = {"identity": digests(self._identity), "step": step, "curve": list(curve)}
        with atomic_folder(self._folder, overwrite=True) as work:
            (work / _TENSORS).write_bytes(save({name: item.contiguous() for name, item in tensors.items()}))
            (work / _STATE).write_bytes(canonical_json(state))

    def restore(
        self, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> tuple[int, list[dict]]:
        """Put the kept state back; returns the steps done and their curve (0 and none without a checkpoint).

        Raises:
            UsageError: it is of another run; see :func:`~safetykit.adapters.artifact.kept.goes_on`.
        """
        kept = of_first(self._read)
        if kept is None:
            return 0, []
        state, tensors = kept
        with torch.no_grad():
            for name, item in parameters.items():
                item.copy_(tensors[f"value.{name}"])
                optimizer.state[item] = _moments(tensors, name, item)
        return state["step"], state["curve"]

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        if self._folder is None or not (self._folder / _STATE).is_file():
            return None
        try:
            state = json.loads((self._folder / _STATE).read_bytes())
            tensors = load((self._folder / _TENSORS).read_bytes())
        except (OSError, ValueError, SafetensorError):
            return None
        known = goes_on(self._folder.parent, state.get("identity"), self._identity, f"{state.get('step')} steps")
        return (state, tensors) if known else None


def _moments(tensors: Mapping[str, Tensor], name: str, item: Tensor) -> dict[str, Tensor]:
    """The optimizer's tensors of one parameter; AdamW keeps its step count on the CPU."""
    found = {}
    for full, value in tensors.items():
        key, _, rest = full.partition(".")
        if rest == name and key != "value":
            found[key] = value.to("cpu" if key == "step" else item.device)
    return found
