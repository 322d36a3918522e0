"""What an export is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...adapters.artifact.adapter import Adapter
from ...toolkit.model.inputs import InputProcessor

if TYPE_CHECKING:
    from ...toolkit.data.records import Record
    from ...toolkit.evaluation.evaluate import Decision
    from ...toolkit.index.caption_index import CaptionIndex


@dataclass(frozen=True)
class Source:
    """What an export is made from, as far as it is known without the model's weights.

    Attributes:
        checkpoint: folder of the base.
        called: how the user called it.
        inputs: of the base.
        adapters: in order; none for a base export.
        names: how the user called the adapters.
        records: those that decisions are compared on, and of split calibration those that thresholds are set on.
        dataset: how the records are called, for the card.
        answered: what the unmodified model answers to the records that decisions are compared on, if that is known.
        skipped_rows: how many rows of them were left out because they are no records.
        index: what an adapter searches whose index is not its own.
    """

    checkpoint: Path
    called: str
    inputs: InputProcessor
    adapters: tuple[Adapter, ...] = ()
    names: tuple[str, ...] = ()
    records: tuple[Record, ...] = ()
    dataset: str = "records"
    answered: tuple[Decision, ...] = ()
    skipped_rows: int = 0
    index: CaptionIndex | None = None

    @property
    def config(self) -> Any:
        """The base's configuration."""
        return self.inputs.config
