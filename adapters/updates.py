"""Weight updates: new values for weights of the base model, so that a change costs no op at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import InvalidArtifact

_SHAPES = ({"value"}, {"up", "down"})


@dataclass(frozen=True)
class WeightUpdate:
    """What one weight of the base becomes.

    Attributes:
        parameter: its name in the base's state dict; the bias of a linear layer may be one that the base lacks.
        tensors: ``value``, the new weight; or ``up`` [out, rank] and ``down`` [rank, in], whose product is added.
    """

    parameter: str
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if set(self.tensors) not in _SHAPES:
            raise InvalidArtifact(
                f"The update of {self.parameter} holds {sorted(self.tensors)}, not value, or up and down.",
                "The adapter is damaged or was made for another version.",
            )
        if not all(torch.isfinite(tensor).all() for tensor in self.tensors.values()):
            raise InvalidArtifact(f"The update of {self.parameter} holds NaN or infinity.", "Fit the adapter again.")

    def apply(self, old: Tensor | None) -> Tensor:
        """The new weight, computed in float64, in the dtype of ``old`` (None: the base has no such bias).

        Raises:
            InvalidArtifact: the shapes do not match.
        """
        if "value" in self.tensors:
            new = self.tensors["value"].double()
        elif old is None:
            raise InvalidArtifact(f"The base has no {self.parameter} to add to.", "The adapter is for another model.")
        else:
            new = old.double().cpu() + self.tensors["up"].double() @ self.tensors["down"].double()
        if old is None:
            return new.float()
        if new.shape != old.shape:
            raise InvalidArtifact(
                f"The update of {self.parameter} gives shape {tuple(new.shape)}, the base has {tuple(old.shape)}.",
                "The adapter is for another model.",
            )
        return new.to(old)
