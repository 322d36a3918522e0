"""Adapters: frozen, small, and independent of any model or graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from ..errors import InvalidArtifact, UsageError
from ..ops.branch import Branch
from ..ops.op import Detector
from .deciding import require_deciding
from .folder import read_folder, write_folder
from .intervention import Intervention
from .manifest import AdapterInfo, DetectorInfo
from .updates import WeightUpdate


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
        """Write the adapter folder, which appears complete or not at all.

        The bytes depend on the adapter alone, so the same fit gives the same files.

        Raises:
            UsageError: ``folder`` exists and ``overwrite`` is off.
        """
        return write_folder(self, Path(folder), overwrite=overwrite)

    @classmethod
    def load(cls, folder: Path | str) -> Adapter:
        """Read an adapter folder, or the id ``org/name`` of one in the local cache.

        Raises:
            UsageError: there is no such folder.
            InvalidArtifact: a file is missing, linked, truncated or changed (the file is named), or a gate or detector
                decides nothing.
        """
        found = read_folder(Path(folder))
        adapter = cls(found.info, found.interventions, found.attachments, found.branch, found.detector, found.updates)
        object.__setattr__(adapter, "read_as", found.digest)
        require_deciding(adapter, str(folder))
        return adapter


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


def whole_prompt(adapters: Sequence[Adapter]) -> str | None:
    """Why stacked adapters need a prompt to be read in one call; None if it may come in chunks."""
    if (branch := the_branch(adapters)) is not None:
        return f"the detector's branch runs the blocks after {branch.safety} again over a whole prompt"
    reasons = (item.whole_prompt for adapter in adapters for item in adapter.interventions)
    return next((reason for reason in reasons if reason), None)


def the_branch(adapters: Sequence[Adapter]) -> Branch | None:
    """The branch among stacked adapters, if any; there is at most one, as there is one detector."""
    the_detector(adapters)
    return next((adapter.branch for adapter in adapters if adapter.branch is not None), None)
