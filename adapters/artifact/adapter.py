"""Interventions and adapters: frozen, small, and independent of any model or graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from pydantic import JsonValue
from torch import Tensor

from ..errors import InvalidArtifact, UsageError
from ..ops.branch import Branch
from ..ops.gating import GatedOp
from ..ops.op import Detector, Op, get_op
from .manifest import AdapterInfo, DetectorInfo
from .sites import Gating, Phase, Scope, Site
from .updates import WeightUpdate


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


class SupportsApplying(Protocol):
    """A model that can run an adapter through hooks (``toolkit.VLM``)."""

    def applied(self, adapter: Adapter, *, allow_wrong_base: bool = False) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, repr=False)
class Adapter:
    """An ordered list of interventions with what is known about them.

    Attributes:
        info: method, variant, hyperparameters, base model and data.
        interventions: applied in this order; at one site, the earlier one acts first.
        attachments: further JSON documents kept beside the tensors, such as a sweep's table.
        branch: a second run that ends in a probe, before generation.
        detector: when to refuse, for an adapter whose branch or op yields a ``risk``.
        updates: weights of the base that get new values.
        read_as: SHA-256 of the manifest file it was read from; None for one that was made or changed in memory.
    """

    info: AdapterInfo
    interventions: tuple[Intervention, ...] = ()
    attachments: Mapping[str, JsonValue] = field(default_factory=dict)
    branch: Branch | None = None
    detector: DetectorInfo | None = None
    updates: tuple[WeightUpdate, ...] = ()
    read_as: str | None = field(default=None, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        sources = sum(isinstance(item.make_op(), Detector) for item in self.interventions) + (self.branch is not None)
        if sources > 1 or (sources == 1) != (self.detector is not None):
            raise InvalidArtifact(
                f"The adapter has {sources} sources of a risk and {'a' if self.detector else 'no'} threshold.",
                "A detector has one of each; the adapter is damaged or was made for another version.",
            )

    def __repr__(self) -> str:
        """Method and variant, what it does where, and the model it was fitted on."""
        does = [f"{item.op} at {item.site}" for item in self.interventions]
        does += [f"{self.branch.op} at {self.branch.fused}"] if self.branch else []
        does += [f"{len(self.updates)} weight updates"] if self.updates else []
        shown = ", ".join(does[:3]) + (f" and {len(does) - 3} more" if len(does) > 3 else "")
        detects = f", refuses above {self.detector.threshold:.3g}" if self.detector else ""
        base = self.info.base
        return (
            f"Adapter({self.info.method} ({self.info.variant}): {shown or 'nothing'}{detects}; "
            f"fitted on {base.architecture} {base.fingerprint[:12]})"
        )

    @property
    def empty(self) -> bool:
        """Whether it changes and detects nothing."""
        return not (self.interventions or self.branch or self.updates)

    def applied(self, model: SupportsApplying, *, allow_wrong_base: bool = False) -> AbstractContextManager[None]:
        """Context in which ``model`` runs with this adapter.

        Raises:
            WrongBase: the adapter was fitted on another model and ``allow_wrong_base`` is off.
        """
        return model.applied(self, allow_wrong_base=allow_wrong_base)

    def save(self, folder: Path | str, *, overwrite: bool = False) -> Path:
        """Write the adapter folder; see :func:`safetykit.adapters.artifact.store.save_adapter`."""
        from .store import save_adapter

        return save_adapter(self, Path(folder), overwrite=overwrite)

    @classmethod
    def load(cls, folder: Path | str) -> Adapter:
        """Read an adapter folder; see :func:`safetykit.adapters.artifact.store.load_adapter`."""
        from .store import load_adapter

        return load_adapter(Path(folder))


def the_detector(adapters: Sequence[Adapter]) -> DetectorInfo | None:
    """The detector among stacked adapters, if any.

    Raises:
        UsageError: there are two: a request has one risk and one refusal.
    """
    found = [adapter for adapter in adapters if adapter.detector is not None]
    if len(found) > 1:
        raise UsageError(
            f"{' and '.join(adapter.info.method for adapter in found)} both decide when to refuse.",
            "Stack at most one detector with correctors.",
        )
    return found[0].detector if found else None


def the_branch(adapters: Sequence[Adapter]) -> Branch | None:
    """The branch among stacked adapters, if any; there is at most one, as there is one detector."""
    the_detector(adapters)
    return next((adapter.branch for adapter in adapters if adapter.branch is not None), None)
