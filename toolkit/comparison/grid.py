"""The grid: models × defences × benchmarks × judges, as a YAML file says it.

Everything that the file alone can get wrong is told at once, each fault with its line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationError, field_validator, model_validator

from ...adapters.artifact.names import apart
from ...adapters.errors import UsageError
from ...adapters.near import did_you_mean
from ..evaluation.judges.names import EXPECTED
from ..evaluation.judges.options import JudgedBy
from ..model.options import LoadOptions
from .entries import FLAT, NONE, Benchmark, Budgets, Defence, Entry, ModelEntry, Name, dashed
from .reading import Read, read_yaml


class _At(ValueError):
    """A fault of several parts, told at one of them."""

    def __init__(self, words: str, *place: str) -> None:
        super().__init__(words)
        self.place = place


class Grid(Entry):
    """What is compared.

    Attributes:
        judges: what judges answers; the first is the one that verdicts are by.
        judge_device: where judges that are models run; ``judge_dtype``: the type of their floats.
        seeds: of fits that draw at random and name no seed: one fit each.
        choose_on: the split on which the defence is chosen that is recommended; None: the records that are reported.
    """

    models: Annotated[dict[Name, ModelEntry], Field(min_length=1), AfterValidator(apart)]
    defences: Annotated[dict[Name, Defence], AfterValidator(apart)] = Field(default_factory=dict, validate_default=True)
    benchmarks: Annotated[dict[Name, Benchmark], Field(min_length=1), AfterValidator(apart)]
    judges: Annotated[tuple[str, ...], Field(min_length=1)] = (EXPECTED,)
    judge_device: str | None = None
    judge_dtype: str | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] = 32
    seeds: tuple[Annotated[int, Field(ge=0, le=2**32 - 1)], ...] = ()
    budgets: Budgets = Field(default_factory=Budgets)
    choose_on: Literal["calibration"] | None = None
    title: str = "Comparison"
    schema_version: Literal[1] = 1

    @field_validator("judges", "seeds")
    @classmethod
    def _once(cls, given: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(given)) < len(given):
            raise ValueError("one of them is there twice")
        return given

    @field_validator("defences")
    @classmethod
    def _none_first(cls, given: dict[str, Defence]) -> dict[str, Defence]:
        if NONE in given and not given[NONE].bare:
            raise ValueError(f"{NONE} is the model by itself: call this one otherwise")
        for name, one in given.items():
            if name != NONE and one.bare:
                raise ValueError(f"{name} is no defence: it needs adapter, fit, stack or defence")
        return {NONE: Defence(), **{name: one for name, one in given.items() if name != NONE}}

    def judging(self) -> JudgedBy:
        """Who judges, and where.

        Raises:
            UsageError: no model runs there, or none has such floats.
        """
        placed = {"judge_device": self.judge_device, "judge_dtype": self.judge_dtype}
        return JudgedBy(judges=self.judges, **{name: value for name, value in placed.items() if value is not None})

    @model_validator(mode="after")
    def _placed(self) -> Self:
        try:
            self.judging()
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _named(self) -> Self:
        models = list(self.models)
        for name, model in self.models.items():
            if model.baseline is None:
                continue
            if model.baseline not in self.models or model.baseline == name:
                hint = did_you_mean(model.baseline, [one for one in models if one != name])
                words = f"{model.baseline!r} is no other model of the grid. {hint}".strip()
                raise _At(words, "models", name, "baseline")
            if self.models[model.baseline].baseline is not None:
                raise _At("this one has a baseline itself: name that of both", "models", name, "baseline")
        for name, defence in self.defences.items():
            for meant in defence.models:
                if meant not in self.models:
                    words = f"there is no model {meant!r} in the grid. {did_you_mean(meant, models)}".strip()
                    raise _At(words, "defences", name, "models")
        seeded = [name for name, one in self.defences.items() if any(part.seeded for part in one.stack)]
        if self.seeds and not seeded:
            raise _At("does nothing: no fit draws at random and leaves its seed open", "seeds")
        taken = {f"{name}-seed{seed}" for name in seeded for seed in self.seeds} | {
            name for name, model in self.models.items() if model.baseline is not None
        }
        if twice := [name for name in self.defences if name in taken]:
            raise _At("results call something else so: give this defence another name", "defences", twice[0])
        for name, one in self.benchmarks.items():
            if one.split == self.choose_on:
                words = f"it is the split of {name}, too: report another one, or leave choose-on out"
                raise _At(words, "choose-on")
        return self


def load_grid(path: Path) -> tuple[Grid, Read]:
    """Read a grid.

    Raises:
        UsageError: there is none; or all that is wrong with it, each fault with its line.
    """
    read = read_yaml(path)
    if not isinstance(read.value, dict):
        raise UsageError(f"{path} holds no grid.", "Begin with `safetykit compare --init grid.yaml`.")
    try:
        return Grid.model_validate(read.value), read
    except ValidationError as error:
        found = [_told(read, one) for one in error.errors()]
        count = "1 fault" if len(found) == 1 else f"{len(found)} faults"
        lines = "\n  ".join(found)
        raise UsageError(
            f"{path} has {count}:\n  {lines}", "Mend them; docs/howto/compare.md lists every key."
        ) from None


_WORDS = {
    "missing": "it is needed",
    "string_pattern_mismatch": "a name has letters, digits, and within it . _ + -",
    "too_short": "it needs one at least",
    "tuple_type": "it is no list",
    "dict_type": "it is no mapping of names",
    "string_type": "it is no text",
}


def _told(read: Read, fault: Any) -> str:
    error = fault.get("ctx", {}).get("error")
    place = error.place if isinstance(error, _At) else tuple(one for one in fault["loc"] if one != "[key]")
    if len(place) > 3 and place[2] == "stack" and place[:3] not in read.lines:  # written without it
        place = (*place[:2], *place[4:])
    words = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        words = f"there is no such key. {did_you_mean(str(place[-1]), _keys(place))}".strip()
    elif fault["type"] in _WORDS:
        words = _WORDS[fault["type"]]
    if words.split(" ", 1)[0].istitle():  # and not the name of a class, or CARE
        words = words[0].lower() + words[1:]
    return f"{read.where(place)}: {words}"


def _keys(place: tuple[Any, ...]) -> list[str]:
    """What may stand where an unknown key does."""
    kinds: dict[Any, type[BaseModel]] = {"models": ModelEntry, "benchmarks": Benchmark, "budgets": Budgets}
    if len(place) == 1:
        return [dashed(name) for name in Grid.model_fields]
    if place[0] == "defences":
        return [*FLAT, "stack", "defence", "models"]
    kind = kinds.get(place[0])
    keys = [dashed(name) for name in kind.model_fields] if kind else []
    return [*keys, *map(dashed, LoadOptions.model_fields)] if kind is ModelEntry else keys
