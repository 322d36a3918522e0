"""What a grid names: models, defences with their parts, benchmarks, and what a defence may cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    field_validator,
    model_serializer,
    model_validator,
)

from ...adapters.artifact.names import portable
from ...adapters.budget import Budget
from ...adapters.errors import UsageError
from ...adapters.method import Method
from ...adapters.registry import get_method
from ...adapters.settings import Settings, spelled_as_options
from ..data.record import Split
from ..model.options import LoadOptions

NONE = "none"  # the defence that is none: what all others are compared with
Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=60),
    AfterValidator(portable),
]
Share = Annotated[float, Field(ge=0, le=1)]


def dashed(name: str) -> str:
    """A key as files spell it."""
    return name.replace("_", "-")


class Entry(BaseModel):
    """A part of the grid; keys are spelled with dashes, as options are."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=dashed, validate_by_name=True)


def _gathered(given: Mapping[str, Any], field: str, kind: type[Settings]) -> dict[str, Any]:
    """A mapping whose keys that are options of a kind stand together in a field of their own, which no file names."""
    names = {dashed(name): name for name in kind.model_fields}
    if field in given and not isinstance(given[field], kind):
        raise ValueError(f"there is no key {field}: its options stand beside the others")
    rest = {key: value for key, value in given.items() if key not in names}
    options = {names[key]: value for key, value in given.items() if key in names}
    try:
        return {field: kind(**options), **rest}
    except UsageError as error:
        raise ValueError(str(error)) from None


def _given(options: Settings) -> dict[str, Any]:
    """Options as a file gives them."""
    return {
        dashed(name): getattr(options, name) for name in type(options).model_fields if name in options.model_fields_set
    }


class ModelEntry(Entry):
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
        return _gathered(given, "loading", LoadOptions)

    @model_serializer(mode="wrap")
    def _as_given(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**plain(self), **_given(self.loading)}


class Part(Entry):
    """An adapter of a defence: one that is there, or one to be fitted.

    Attributes:
        adapter: its folder.
        fit: a method; ``data``: what it is fitted on.
        settings: of the fit, spelled as the options of ``safetykit fit METHOD``.
        sweep: choose what is not given on calibration records.
        refusal: what a refused user reads.
        skip_bad_rows: leave out rows that are no records.
        budget: what it may cost on new groups of harmless records; in the file, its options stand beside ``fit``.
    """

    adapter: str | None = None
    fit: str | None = None
    data: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    sweep: bool = False
    refusal: str | None = None
    skip_bad_rows: bool = False
    budget: Budget = Field(default_factory=Budget, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _of_options(cls, given: Any) -> Any:
        return _gathered(given, "budget", Budget) if isinstance(given, Mapping) else given

    @model_serializer(mode="wrap")
    def _as_given(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {**plain(self), **_given(self.budget)}

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
                    raise ValueError(f"{dashed(name)} does nothing without fit")
            if given := _given(self.budget):
                raise ValueError(f"{next(iter(given))} does nothing without fit")
            return self
        if self.data is None:
            raise ValueError("a fit needs data")
        if misplaced := [name for name in Budget.model_fields if name in self.settings]:
            raise ValueError(f"{dashed(misplaced[0])} is no setting of the method: write it beside fit")
        try:
            method = get_method(self.fit)
            with spelled_as_options():
                self._settle(method)
        except UsageError as error:
            raise ValueError(str(error)) from None
        if self.sweep and method.sweep is None:
            raise ValueError(f"{method.name} has no sweep")
        if (given := _given(self.budget)) and not method.budgeted and method.sweep is None:
            raise ValueError(f"{next(iter(given))} does nothing with {method.name}: it has no threshold and no sweep")
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
        return "seed" in self._settle(method).acting()


FLAT = tuple(dashed(name) for name in (*Part.model_fields, *Budget.model_fields) if name != "budget")


class Defence(Entry):
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
        flat = {key: value for key, value in given.items() if key in FLAT}
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


class Benchmark(Entry):
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


class Budgets(Entry):
    """What a defence may cost, against no defence, and still be recommended.

    Attributes:
        over_refusal: how much larger the share of refused harmless requests may be.
        utility_loss: how much smaller the share of exact answers may be.
    """

    over_refusal: Share = 0.02
    utility_loss: Share = 0.02
