"""Branches: a second run through the decoder's later blocks that ends in a probe, before anything is generated.

At prefill, blocks 0…f run once. The branch starts from a state made of those of two blocks, ``safety`` (s) and
``fused`` (f), runs blocks s+1…L−1 and the final norm on it, and reads a risk off the last position. Nothing it
computes enters the answer, and it has no KV cache. The blocks are those of the model as it runs: with
correctors applied, their ops act in the branch as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..artifact.sites import Site
from ..errors import InvalidArtifact
from .op import Hidden
from .registry import Ops

_BRANCHES = Ops("branch op")


class BranchOp(nn.Module, ABC):
    """How a branch starts and how its risk is read; like an op, it holds no tensors of its own.

    Class attributes:
        name: how the manifest calls it.
        params: names of the stored tensors; :meth:`risk` takes each by its name.
    """

    name: ClassVar[str]
    params: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        _BRANCHES.add(cls)

    @abstractmethod
    def start(self, safety: Hidden, fused: Hidden) -> Hidden:
        """The state that blocks s+1… continue from; shape and dtype of ``fused``."""

    @abstractmethod
    def risk(self, normed: Hidden, **tensors: Tensor) -> Float[Tensor, " batch"]:
        """Log-odds of harm, in float32, from the branch's states after the final norm."""


def get_branch_op(name: str) -> BranchOp:
    """A fresh instance of the branch op registered as ``name`` (it has no state).

    Raises:
        InvalidArtifact: there is none (an adapter from a newer version, or a damaged manifest).
    """
    return cast(BranchOp, _BRANCHES.get(name)())


@dataclass(frozen=True)
class Branch:
    """A branch with its places and parameters.

    Attributes:
        op: registered name of the branch op.
        safety: block s; the branch runs the blocks after it.
        fused: block f, not before s.
        tensors: the op's parameters by name, on the CPU.
    """

    op: str
    safety: Site
    fused: Site
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        wanted = self.make_op().params
        if set(wanted) != set(self.tensors):
            raise InvalidArtifact(
                f"Branch {self.op} takes {sorted(wanted)}, not {sorted(self.tensors)}.",
                "The adapter is damaged or was made for another version.",
            )
        if not all(torch.isfinite(tensor).all() for tensor in self.tensors.values()):
            raise InvalidArtifact(f"A parameter of branch {self.op} holds NaN or infinity.", "Fit the adapter again.")
        blocks = self.safety.kind == self.fused.kind == "block"
        if not blocks or self.safety > self.fused:
            raise InvalidArtifact(
                f"A branch cannot lead from {self.fused} to {self.safety}.",
                "Its safety layer and its fused layer are block outputs, the safety layer not after the fused one.",
            )

    def make_op(self) -> BranchOp:
        """A fresh instance of the op (it has no state)."""
        return get_branch_op(self.op)

    def blocks(self, n_layers: int) -> int:
        """Block evaluations of one prefill, the answer's own included: (f+1) + (L−1−s) + (L−1−f)."""
        assert self.safety.layer is not None
        return n_layers + (n_layers - 1 - self.safety.layer)
