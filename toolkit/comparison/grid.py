"""The grid: models × defences × benchmarks × judges, as a YAML file says it.

Everything that the file alone can get wrong is told at once, each fault with its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from ...adapters.artifact.names import apart, portable
from ...adapters.errors import UsageError
from ...adapters.method import Method
from ...adapters.near import did_you_mean
from ...adapters.registry import get_method
from ...adapters.settings import Settings
from ..data.record import Split
from ..evaluation.judges.names import EXPECTED
from ..evaluation.judges.options import JudgeOptions
from ..model.options import LoadOptions
from .reading import Read, read_yaml

NONE = "none"  # the defence that is none: what all others are compared with
Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=60),
    AfterValidator(portable),
]
Share = Annotated[float, Field(ge=0, le=1)]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


class _Entry(BaseModel):
    """A part of the grid; keys are spelled with dashes, as options are."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=_dashed, validate_by_name=True)


def _loading(given: Mapping[str, Any]) -> LoadOptions:
    try:
        return LoadOptions(**{name.replace("-", "_"): value for name, value in given.items()})
    except UsageError as error:
        raise ValueError(str(error)) from None


class ModelEntry(_Entry):
    """A model.

    Attributes:
        path: checkpoint (folder or id), export folder, or address of a server, ``http://…/v1``.
        baseline: another model of the grid that it is compared with, such as the checkpoint of an export: then its own
            answers without a defence count as a defence of that model.
        served_model: which model of a server answers.
        loading: how a checkpoint is loaded; in the file, the options stand beside ``path``.
    """

    path: Annotated[str, StringConstraints(min_length=1)]
    baseline: Name | None = None
    served_model: str | None = None
    loading: LoadOptions = Field(default_factory=LoadOptions, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"path": given}
        if not isinstance(given, Mapping):
            return given
        options = {_dashed(name): name for name in LoadOptions.model_fields}
        kept = {key: value for key, value in given.items() if key not in options}
        if "loading" in kept:
            return given  # refused as unknown below, for files have no such key
        return {**kept, "loading": _loading({key: given[key] for key in given if key in options})}


class Part(_Entry):
    """An adapter of a defence: one that is there, or one to be fitted.

    Attributes:
        adapter: its folder.
        fit: a method; ``data``: what it is fitted on.
        settings: of the fit, spelled as the options of ``safetykit fit METHOD``.
        sweep: choose what is not given on calibration records.
        refusal: what a refused user reads.
        skip_bad_rows: leave out rows that are no records.
    """

    adapter: str | None = None
    fit: str | None = None
    data: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    sweep: bool = False
    refusal: str | None = None
    skip_bad_rows: bool = False

    @field_validator("settings")
    @classmethod
    def _spelled(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {name.replace("-", "_"): value for name, value in given.items()}

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.adapter is None) == (self.fit is None):
            raise ValueError("it needs one of adapter and fit")
        if self.fit is None:
            for name in ("data", "settings", "sweep", "refusal", "skip_bad_rows"):
                if name in self.model_fields_set:
                    raise ValueError(f"{_dashed(name)} does nothing without fit")
            return self
        if self.data is None:
            raise ValueError("a fit needs data")
        try:
            method = get_method(self.fit)
            self._settle(method)
        except UsageError as error:
            raise ValueError(str(error)) from None
        if self.sweep and method.sweep is None:
            raise ValueError(f"{method.name} has no sweep")
        if self.refusal is not None and "refusal" not in method.takes:
            raise ValueError(f"refusal does nothing with {method.name}")
        if self.skip_bad_rows and method.data != "records":
            raise ValueError(f"skip-bad-rows does nothing with {method.name}, which is fitted on captions")
        if needed := [name for name in method.needs if name != "refusal"]:
            raise ValueError(f"{method.name} needs {', '.join(needed)}: fit it by itself, and name its folder")
        return self

    def _settle(self, method: Method) -> Settings:
        try:
            return method.settings(**self.settings)
        except UsageError:
            if self.sweep:  # what the others are, the sweep chooses
                return method.settings.recorded(self.settings)
            raise

    @property
    def seeded(self) -> bool:
        """Whether a fit leaves a seed open."""
        if self.fit is None or "seed" in self.settings:
            return False
        method = get_method(self.fit)
        return "seed" in method.settings.model_fields and (self.sweep or "seed" in self._settle(method).acting())


_FLAT = tuple(_dashed(name) for name in Part.model_fields)


class Defence(_Entry):
    """What is put on a model; nothing at all is its own answers.

    Attributes:
        stack: adapters in their order. In the file one adapter's keys may stand here by themselves, and ``adapter`` may
            be a list of folders.
        defence: an inference-time defence by name, around the model with its adapters.
        models: of the grid, to which it is put; all of them if empty.
    """

    stack: tuple[Part, ...] = ()
    defence: str | None = None
    models: tuple[Name, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        if given is None:
            return {}
        if not isinstance(given, Mapping):
            return given
        flat = {key: value for key, value in given.items() if key in _FLAT}
        if not flat:
            return given
        if "stack" in given:
            raise ValueError(f"{next(iter(flat))} and stack exclude each other")
        rest = {key: value for key, value in given.items() if key not in flat}
        if isinstance(folders := flat.get("adapter"), list):
            if len(flat) > 1:
                raise ValueError(f"a list of adapters has no {next(key for key in flat if key != 'adapter')}")
            return {**rest, "stack": [{"adapter": one} for one in folders]}
        return {**rest, "stack": [flat]}

    @property
    def bare(self) -> bool:
        """Whether it changes nothing."""
        return not self.stack and self.defence is None


class Benchmark(_Entry):
    """Records that are answered.

    Attributes:
        data: JSONL or Parquet file, folder of them, or ``reference``.
        limit: at most this many records, spread over the groups.
        max_new_tokens: the longest answer; None: the grid's.
    """

    data: Annotated[str, StringConstraints(min_length=1)]
    split: Split = "test"
    limit: Annotated[int, Field(ge=1)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    skip_bad_rows: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_text(cls, given: Any) -> Any:
        return {"data": given} if isinstance(given, str) else given


class Budgets(_Entry):
    """What a defence may cost, against no defence, and still be recommended.

    Attributes:
        over_refusal: how much larger the share of refused harmless requests may be.
        utility_loss: how much smaller the share of exact answers may be.
    """

    over_refusal: Share = 0.02
    utility_loss: Share = 0.02


class Grid(_Entry):
    """What is compared.

    Attributes:
        judges: what judges answers; the first is the one that verdicts are by.
        judge_device: where judges that are models run; ``judge_dtype``: the type of their floats.
        seeds: of fits that draw at random and name no seed: one fit each.
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

    def judging(self) -> JudgeOptions:
        """Who judges, and where.

        Raises:
            UsageError: no model runs there, or none has such floats.
        """
        placed = {"judge_device": self.judge_device, "judge_dtype": self.judge_dtype}
        return JudgeOptions(judges=self.judges, **{name: value for name, value in placed.items() if value is not None})

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
                raise ValueError(f"the baseline {model.baseline!r} of {name} is no other model of the grid. {hint}")
            if self.models[model.baseline].baseline is not None:
                raise ValueError(f"the baseline of {name} has one itself: name that of both")
        for name, defence in self.defences.items():
            for meant in defence.models:
                if meant not in self.models:
                    raise ValueError(f"{name} names the model {meant!r}. {did_you_mean(meant, models)}".strip())
        if self.seeds and not any(part.seeded for one in self.defences.values() for part in one.stack):
            raise ValueError("seeds does nothing: no fit draws at random and leaves its seed open")
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


def _told(read: Read, fault: Any) -> str:
    place = tuple(one for one in fault["loc"] if one != "[key]")
    if len(place) > 3 and place[2] == "stack" and place[:3] not in read.lines:  # written without it
        place = (*place[:2], *place[4:])
    words = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        words = f"there is no such key. {did_you_mean(str(place[-1]), _keys(place))}".strip()
    elif fault["type"] == "missing":
        words = "it is needed"
    elif fault["type"] == "string_pattern_mismatch":
        words = "a name has letters, digits, and within it . _ + -"
    return f"{read.where(place)}: {words[:1].lower()}{words[1:]}"


def _keys(place: tuple[Any, ...]) -> list[str]:
    """What may stand where an unknown key does."""
    kinds: dict[Any, type[BaseModel]] = {"models": ModelEntry, "benchmarks": Benchmark, "budgets": Budgets}
    if len(place) == 1:
        return [_dashed(name) for name in Grid.model_fields]
    if place[0] == "defences":
        return [*_FLAT, "stack", "defence", "models"]
    kind = kinds.get(place[0])
    keys = [_dashed(name) for name in kind.model_fields] if kind else []
    return [*keys, *map(_dashed, LoadOptions.model_fields)] if kind is ModelEntry else keys
