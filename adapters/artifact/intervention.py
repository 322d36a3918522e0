"""One op at one site: frozen, small, and independent of any model or graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InvalidArtifact
from ..ops.gating import GatedOp, HeldGate
from ..ops.op import Corrector, Op, get_op
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
        reads: blocks before the site, from the first, whose last positions the op reads as well.
    """

    op: str
    site: Site
    scope: Scope
    phase: Phase
    tensors: Mapping[str, Tensor]
    gate: Gating = "per-token"
    reads: tuple[Site, ...] = ()

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
        if self.reads and (obstacle := self._cannot_read()):
            raise InvalidArtifact(
                f"{self.op} at {self.site} cannot read {', '.join(map(str, self.reads))}: {obstacle}.",
                "The adapter is damaged or was made for another version.",
            )
        if self.holds and (obstacle := self._cannot_hold()):
            raise InvalidArtifact(
                f"The gate of {self.op} at {self.site} cannot be held: {obstacle}.", "Use a gate per token."
            )

    @property
    def holds(self) -> bool:
        """Whether a decision of the gate reaches later calls."""
        return self.gate != "per-token"

    @property
    def whole_prompt(self) -> str | None:
        """Why a prompt must be read in one call for it to act as it was fitted; None if it may come in chunks.

        What judges alone is right in chunks: the last one decides, by the prompt's last position.
        """
        op = self.make_op()
        if not isinstance(op, Corrector) or self.site.kind in ("vision", "projector") or self.phase == "decode":
            return None
        if isinstance(op, GatedOp):
            return f"the last position of a prompt decides what {self.op} at {self.site} does to those before it"
        if self.scope == "last":
            return f"{self.op} at {self.site} changes the last position of a prompt, which of a chunk is another"
        return None

    def gated_op(self) -> nn.Module:
        """The op, taking ``decides`` and ``held`` as well where its gate holds."""
        op = self.make_op()
        return HeldGate(op, once=self.gate == "once") if self.holds and isinstance(op, GatedOp) else op

    def _cannot_hold(self) -> str | None:
        """Why a decision cannot be held through the answer; None if it can."""
        op = self.make_op()
        if not isinstance(op, GatedOp):
            return "the op has no gate"
        if op.runtime_inputs:
            return f"the op reads {', '.join(op.runtime_inputs)}, which exists at prefill only"
        if not op.holdable:
            return "the op needs the margin of every token"
        if self.phase == "prefill":
            return "the op acts at prefill only, and the KV cache carries what it did"
        if self.site.kind in ("vision", "projector"):
            return "pictures are read at prefill only"
        return None

    def _cannot_read(self) -> str | None:
        """Why the op cannot read further sites; None if it can."""
        if not self.make_op().reads_earlier:
            return "the op reads its own site only"
        layers = [site.layer for site in (*self.reads, self.site)]
        blocks = all(site.kind == "block" for site in (*self.reads, self.site))
        if not blocks or layers != sorted(set(layers)):  # type: ignore[type-var]
            return "they are not outputs of blocks before its site, in order"
        weight = self.tensors.get("weight")
        if weight is None or weight.ndim != 1 or len(weight) % len(layers):
            return f"its weight is not one of {len(layers)} equal parts"
        return None

    def make_op(self) -> Op:
        """A fresh instance of the op (it has no state)."""
        return get_op(self.op)
