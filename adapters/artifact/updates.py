"""Weight updates: new values for weights of the base model, so that a change costs no op at run time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArtifact

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
        if "up" in self.tensors:
            up, down = self.tensors["up"].shape, self.tensors["down"].shape
            if (len(up), len(down)) != (2, 2) or up[1] != down[0]:
                raise InvalidArtifact(
                    f"The update of {self.parameter} holds up {tuple(up)} and down {tuple(down)}, whose product does "
                    "not exist.",
                    "The adapter is damaged or was made for another version.",
                )

    @property
    def low_rank(self) -> bool:
        """Whether a product is added to the old weight, rather than a new one taking its place."""
        return "up" in self.tensors

    def apply(self, old: Tensor | None) -> Tensor:
        """The new weight, computed in float64, in the dtype of ``old`` (None: the base has no such bias).

        Raises:
            InvalidArtifact: the shapes do not match.
        """
        if self.low_rank and old is None:
            raise InvalidArtifact(f"The base has no {self.parameter} to add to.", "The adapter is for another model.")
        tensors = {name: tensor.double() for name, tensor in self.tensors.items()}
        new = tensors["up"] @ tensors["down"] if self.low_rank else tensors["value"]
        if old is None:
            return new.float()
        if new.shape != old.shape:
            raise InvalidArtifact(
                f"The update of {self.parameter} gives shape {tuple(new.shape)}, the base has {tuple(old.shape)}.",
                "The adapter is for another model.",
            )
        return (old.double().cpu() + new if self.low_rank else new).to(old)


def by_parameter(updates: Iterable[WeightUpdate]) -> dict[str, tuple[WeightUpdate, ...]]:
    """The updates of each parameter, in order."""
    found: dict[str, tuple[WeightUpdate, ...]] = {}
    for update in updates:
        found[update.parameter] = (*found.get(update.parameter, ()), update)
    return found


def compose(updates: Iterable[WeightUpdate], old: Tensor | None) -> Tensor:
    """The weight after ``updates`` of one parameter in order, in float64 on the CPU: rounded once, by the caller.

    Raises:
        InvalidArtifact: the shapes do not match.
    """
    new = None if old is None else old.detach().double().cpu()
    for update in updates:
        new = update.apply(new).double()
    assert new is not None, "no update was given"
    return new
