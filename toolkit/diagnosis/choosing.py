"""Which records a diagnosis looks at, and how much there is to do: what is known without the model's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...adapters.errors import UsageError
from ..data.records import Record
from ..evaluation.judge import require_harmful_texts
from ..model.shape import decoder_shape
from .pairs import POSITIONS, Pair, find_pairs, same_pictures, spread
from .plan import Plan
from .terms import Modality

if TYPE_CHECKING:
    from ..model.inputs import InputProcessor

ROWS = 16  # pairs at once
LONGEST = 32  # tokens of an answer
_STATES, _BLOCKED = 1024, 96


@dataclass(frozen=True)
class Chosen:
    """The records of a diagnosis.

    Attributes:
        pairs: at most as many as were asked for, per modality.
        left_out: pairs per modality whose pictures become other numbers of tokens.
        harmful: those that are answered while layers are skipped; with pictures where there are some.
        on_pictures: whether they have pictures.
        count: of the records of the split.
    """

    pairs: Mapping[Modality, list[Pair]]
    left_out: Mapping[Modality, int]
    harmful: list[Record]
    on_pictures: bool
    count: int

    @classmethod
    def of(cls, inputs: InputProcessor, records: Sequence[Record], pairs: int) -> Chosen:
        """Choose from records of the fit split.

        Raises:
            UsageError: there is no pair, or no harmful text record.
        """
        require_harmful_texts(records)
        found = find_pairs(records)
        chosen: dict[Modality, list[Pair]] = {}
        left_out: dict[Modality, int] = {}
        for modality in POSITIONS:
            mine = spread([pair for pair in found if pair.modality == modality], pairs)
            if kept := same_pictures(inputs, mine):
                chosen[modality], left_out[modality] = kept, len(mine) - len(kept)
        if not chosen:
            raise UsageError(
                "There are no pairs of a harmful and a harmless record in the fit split.",
                "Give records of the same wording and carrier each other's id in `pair`; with pictures of the same "
                "size.",
            )
        on_pictures = any(record.pictured and record.label == "harmful" for record in records)
        harmful = [one for one in records if one.label == "harmful" and one.pictured == on_pictures]
        return cls(chosen, left_out, harmful, on_pictures, len(records))

    def plan(self, depth: int, neurons: int, batch_size: int, max_new_tokens: int) -> Plan:
        """What is to be done with them if there is no budget."""
        return Plan(
            depth=depth,
            pairs={modality: len(found) for modality, found in self.pairs.items()},
            neurons=neurons,
            blocked=min(_BLOCKED, len(self.harmful)),
            states=min(_STATES, self.count),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
        )


def require_diagnosis(
    folder: Path, records: Sequence[Record], *, budget: int | None, pairs: int, neurons: int, batch_size: int | None
) -> Chosen | None:
    """Refuse a diagnosis that cannot be, before the model in ``folder`` is loaded.

    Args:
        records: of the fit split; the others are those of :func:`.run.diagnose`.

    Returns:
        What it looks at; None where the model is not known, which loading explains.

    Raises:
        UsageError: there is no pair, no harmful text record, or the budget is too small.
    """
    from ..model.inputs import InputProcessor

    if (shape := decoder_shape(folder)) is None:
        return None
    chosen = Chosen.of(InputProcessor.from_pretrained(folder), records, pairs)
    chosen.plan(shape.n_layers, neurons, batch_size or ROWS, LONGEST).within(budget)
    return chosen
