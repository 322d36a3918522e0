"""What a reader of card and report must not miss, before anything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ...adapters.artifact.deciding import accepts_constant
from ..manifest import ExportManifest
from ..parity.report import ParityReport


@dataclass(frozen=True)
class Notice:
    """A notice.

    Attributes:
        warning: something may be wrong with this export; otherwise it is a fact to keep in mind.
    """

    title: str
    text: str
    warning: bool = True


class Noted(Protocol):
    """What notices are read off (``figures.Figures``)."""

    @property
    def manifest(self) -> ExportManifest: ...

    @property
    def parity(self) -> ParityReport | None: ...

    @property
    def decisions_compared(self) -> int | None: ...

    @property
    def organism(self) -> bool: ...


def notices(figures: Noted) -> tuple[Notice, ...]:
    """The notices of an export, warnings first."""
    return tuple(_notices(figures))


def _notices(figures: Noted) -> Iterator[Notice]:
    manifest = figures.manifest
    if manifest.wrong_base_allowed:
        yield Notice(
            "wrong base allowed",
            "The check that binds an adapter to the model it was fitted on was switched off for this export. An "
            "adapter on another model may do nothing, or harm. Trust only what the evaluation below shows.",
        )
    if manifest.uncorrected_detector_allowed:
        yield Notice(
            "detector not fitted under the correctors beside it",
            "This was accepted. The detector judges states that it has never seen, with a threshold set on others: it "
            "may refuse harmless requests, or let harmful ones pass. Trust only what the evaluation below shows.",
        )
    if any(accepts_constant(info) for info in manifest.adapters):
        yield Notice(
            "a gate that decides nothing may be in it",
            "The fit was told to accept a gate that is open, or closed, on all that it has seen. Such an adapter "
            "changes every answer, or none. Trust only what the evaluation below shows.",
        )
    warnings = figures.parity.warnings if figures.parity else ()
    for warning in warnings:
        title, _, text = warning.partition(": ")
        yield Notice(title[:1].lower() + title[1:], text[:1].upper() + text[1:])
    if figures.parity and manifest.adapters and figures.decisions_compared is None and not warnings:
        yield Notice(
            "No decision was compared",
            "The export was made without records. Its logits and ops are those of PyTorch within the limits below; how "
            "many requests it refuses and answers alike was not counted.",
            warning=False,
        )
    if figures.organism:
        yield Notice(
            "The base is a model organism",
            "A small model trained to have the weakness that the adapter repairs. Its figures show that the machinery "
            "works. They are no claim about any large model.",
            warning=False,
        )
