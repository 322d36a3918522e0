"""One op at one site: frozen, small, and independent of any model or graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArtifact
from ..ops.gating import GatedOp
from ..ops.op import Op, get_op
from .sites import Gating, Phase, Scope, Site


@dataclass(frozen=True)
class Intervention:
    """An op at a site, with its scope, phase and parameters.

    Attributes:
        op: registered name of the op.
        site: where it acts.
        scope: which tokens it touches.
        phase: in which phase of generation it acts.
        tensors: the op's parameters by name, on the CPU.
        gate: for how long the decision of the op's gate stands, see :mod:`.gating`.
    """

    op: str
    site: Site
    scope: Scope
    phase: Phase
    tensors: Mapping[str, Tensor]
    gate: Gating = "per-token"

    def __post_init__(self) -> None:
        wanted = self.make_op().params
        if set(wanted) != set(self.tensors):
            raise InvalidArtifact(
                f"Op {self.op} at {self.site} takes {sorted(wanted)}, not {sorted(self.tensors)}.",
                "The adapter is damaged or was made for another version.",
            )
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise InvalidArtifact(
                    f"Parameter {name} of {self.op} at {self.site} holds NaN or infinity.", "Fit the adapter again."
                )
        if self.gate == "held" and (obstacle := self._cannot_hold()):
            raise InvalidArtifact(
                f"The gate of {self.op} at {self.site} cannot be held: {obstacle}.", "Use a gate per token."
            )

    def _cannot_hold(self) -> str | None:
        """Why a decision made at prefill cannot be held through the answer; None if it can."""
        op = self.make_op()
        if not isinstance(op, GatedOp):
            return "the op has no gate"
        if op.runtime_inputs:
            return f"the op reads {', '.join(op.runtime_inputs)}, which exists at prefill only"
        if self.phase == "prefill":
            return "the op acts at prefill only, and the KV cache carries what it did"
        if self.site.kind in ("vision", "projector"):
            return "pictures are read at prefill only"
        return None

    def make_op(self) -> Op:
        """A fresh instance of the op (it has no state)."""
        return get_op(self.op)
