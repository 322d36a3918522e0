"""What may be chosen about an attack: from here come the options of `attack` and their help. It needs no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BeforeValidator, Field, model_validator

from ...adapters.errors import UsageError
from ...adapters.ranges import seed_setting
from ...adapters.settings import setting, spell
from ..data.options import RECORDS
from ..evaluation.options import ChosenRecords
from ..model.options import LoadOptions
from ..reference import Split

Objective = Literal["jailbreak", "toxic", "refusal"]
Kind = Literal["rotate", "crop", "resize", "jpeg", "noise", "blur", "brightness", "contrast"]

SEVERITIES: Final = (1, 2, 3, 4, 5)
Severity = Annotated[int, Field(ge=1, le=5)]

NONE: Final = "none"
AUTO: Final = "auto"
LEVELS: Final = 255  # the largest value of a channel
_LEAST = 0.5  # of a level: what is less is rounded away
_AIMED = ("jailbreak", "toxic")
_FRACTION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*255\s*")


def _levels(name: str, given: Any, words: tuple[str, ...]) -> float:
    """What was typed, in levels of 255."""
    text = str(given)
    try:
        found = float(match[1]) if (match := _FRACTION.fullmatch(text)) else float(text) * LEVELS
    except ValueError:
        found = -1.0
    if not 0 < found <= LEVELS:
        known = "".join(f"{word}, " for word in words)
        raise UsageError(
            f"{spell(PgdOptions, name)} cannot be {text!r}.",
            f"It is {known}levels of 255 such as 16/255, or a share above 0 and at most 1 such as 0.06.",
        )
    return found


def _epsilon(given: Any) -> str:
    text = str(given)
    if text != NONE and _levels("epsilon", text, (NONE,)) < 1:
        raise UsageError(
            f"{spell(PgdOptions, 'epsilon')} {text} is less than a level of 8 bits.", "Give 1/255 or more."
        )
    return text


def _step_size(given: Any) -> str:
    text = str(given)
    if text != AUTO:
        _levels("step_size", text, (AUTO,))
    return text


class AttackedRecords(ChosenRecords):
    """Which records are attacked."""

    split: Split = setting("test", "Which split of the records is attacked.")
    limit: int | None = setting(None, "Attack at most this many records, spread over the groups.", ge=1, shown="all")


class PgdOptions(AttackedRecords, LoadOptions):
    """How adversarial pictures are looked for by gradients."""

    data: str = setting(..., RECORDS)
    objective: Objective = setting(
        "jailbreak",
        "What is aimed at: the record's response, the response without the request, or that no refusal begins.",
    )
    epsilon: Annotated[str, BeforeValidator(_epsilon)] = setting(
        "16/255", "Most that a channel of a pixel may change, such as 16/255 or 0.06; none sets no bound."
    )
    steps: int = setting(100, "Steps along the sign of the gradient.", ge=1)
    step_size: Annotated[str, BeforeValidator(_step_size)] = setting(
        AUTO, "Change of a channel in a step, such as 1/255, or auto: 2.5 epsilon / steps, 1/255 at least."
    )
    universal: bool = setting(False, "One change for all records; one picture, where they bring none.")
    target: str = setting(
        "", "How every answer is to begin, in the place of the responses.", acts={"objective": _AIMED}, shown="none"
    )
    target_tokens: int = setting(32, "Most tokens of a target that are aimed at.", acts={"objective": _AIMED}, ge=1)
    picture: Path | None = setting(
        None, "Picture that records without one begin with.", shown="a grey square, as the model sees it"
    )
    evade: float = setting(1.0, "Weight of staying below gates and detectors of the adapters; 0 for none.", ge=0)
    seed: int = seed_setting("Of the first step, and of the order of records with --universal.")
    allow_wrong_base: bool = setting(False, "Accept an adapter fitted on another model.")
    allow_uncorrected_detector: bool = setting(
        False, "Accept a detector that was not fitted under the correctors beside it."
    )

    @model_validator(mode="after")
    def _moves(self) -> Self:
        if self.steps * self.step < _LEAST:
            size, count = spell(PgdOptions, "step_size"), spell(PgdOptions, "steps")
            raise UsageError(
                f"{count} {self.steps} of {size} {self.step_size} change nothing in a file: together they are less "
                "than half a level of 8 bits.",
                "Take more steps, or larger ones.",
            )
        return self

    @property
    def levels(self) -> int:
        """The bound in whole levels of 255, which files of 8 bits have."""
        return LEVELS if self.epsilon == NONE else int(_levels("epsilon", self.epsilon, (NONE,)) + 1e-6)

    @property
    def step(self) -> float:
        """The step in levels of 255."""
        if self.step_size == AUTO:
            return max(1.0, 2.5 * self.levels / self.steps)
        return _levels("step_size", self.step_size, (AUTO,))

    def name(self, adaptive: bool) -> str:
        """What marks the records: the attack with its bound, and what is special about it."""
        parts = ["pgd", NONE if self.epsilon == NONE else f"eps{self.levels}"]
        parts += [self.objective] if self.objective != "jailbreak" else []
        parts += [word for word, said in (("universal", self.universal), ("adaptive", adaptive)) if said]
        return "-".join(parts)


class CorruptOptions(AttackedRecords):
    """How pictures are corrupted."""

    data: str | None = setting(None, RECORDS, hidden=True)
    kinds: tuple[Kind, ...] = setting(get_args(Kind), "What is done to a picture.", hidden=True, min_length=1)
    severities: tuple[Severity, ...] = setting(SEVERITIES, "How much of it, from 1 to 5.", hidden=True, min_length=1)
    seed: int = seed_setting("Of what is left to chance, such as which way a picture is turned.")
