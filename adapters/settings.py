"""Settings: what may be chosen about a fit or an export, written once.

A method's settings are one frozen pydantic model. Its fields say everything: name, type, range, default, what the
choice means (the help of the command line) and in which combinations it acts. So a wrong value, an unknown name and a
setting that would do nothing are refused alike from Python, from the command line and from a manifest::

    class Example(Settings):
        gate: Literal["paper", "calibrated"] = setting("paper", "How the threshold is set.")
        rate: float = setting(0.02, "Share of harmless records above it.", acts={"gate": "calibrated"}, ge=0, lt=1)

    Example(gate="papr")   # UsageError: gate cannot be 'papr'. It is paper or calibrated. Did you mean 'paper'?
    Example(rate=0.1)      # UsageError: rate does nothing with gate paper. …

No file with settings imports torch: help must be fast.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    JsonValue,
    ValidationError,
    ValidationInfo,
)
from pydantic import model_validator as after_validator
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema
from pydantic_core.core_schema import no_info_after_validator_function

from .errors import UsageError
from .near import did_you_mean

POSITIVE = "positive"  # in ``acts``: the other setting is a number above 0
_OPTIONS: ContextVar[bool] = ContextVar("options", default=False)

Condition = Mapping[str, Any]  # other setting → the value it must have, a tuple of such values, or POSITIVE


@dataclass(frozen=True)
class About:
    """What a field says beside its type, default and description.

    Attributes:
        acts: when the setting acts: in one of these combinations; always if empty.
        option: how the command line spells it, without dashes; None: the name with dashes.
        shown: what help gives as the default, where that depends on the model or on other settings.
        hidden: the command line does not offer it.
    """

    acts: tuple[Condition, ...] = ()
    option: str | None = None
    shown: str | None = None
    hidden: bool = False


def setting(
    default: Any,
    description: str,
    *,
    acts: Condition | Sequence[Condition] = (),
    option: str | None = None,
    shown: str | None = None,
    hidden: bool = False,
    **limits: Any,
) -> Any:
    """A field of :class:`Settings`.

    Args:
        default: its value when it is not given.
        description: what it means, for help; one sentence.
        acts: other settings with the values they must have for this one to act; several such mappings are
            alternatives. Given where it cannot act, it is refused.
        option: the command line's name for it, if it is another one.
        shown: the default as help shows it, where the value alone says little.
        hidden: not offered by the command line.
        limits: ``ge``, ``gt``, ``le``, ``lt``, ``min_length``.
    """
    about = About((acts,) if isinstance(acts, Mapping) else tuple(acts), option, shown, hidden)
    return Field(default, description=description, json_schema_extra={"about": about}, **limits)  # type: ignore[dict-item]


@dataclass(frozen=True)
class OneOf:
    """In ``Annotated[str, OneOf(names)]``: one of names that are known only when asked for, such as a registry's.

    Attributes:
        names: gives them.
    """

    names: Callable[[], Sequence[str]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: str) -> str:
        if value not in self.names():
            raise ValueError("no such name")  # the refusal of the settings says which there are
        return value


class Settings(BaseModel):
    """Base of all settings; see the module."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    def __init__(self, /, **given: Any) -> None:
        self._validate(given, recorded=False)

    def _validate(self, given: Mapping[str, Any], recorded: bool) -> None:
        try:
            self.__pydantic_validator__.validate_python(dict(given), self_instance=self, context={"recorded": recorded})
        except ValidationError as error:
            raise _refusal(type(self), error) from None

    @after_validator(mode="after")
    def _all_given_act(self, info: ValidationInfo) -> Self:
        if not (info.context or {}).get("recorded"):
            self.require_acting(self.model_fields_set)
        return self

    @classmethod
    def recorded(cls, values: Mapping[str, JsonValue]) -> Self:
        """The settings that a manifest or a table records, which names all of them, also those that did not act.

        Names that are no settings (what a fit has found out) are left out.

        Raises:
            UsageError: a value is none that the setting can have.
        """
        # A list of no layers is how older manifests say that nothing was chosen.
        known = {name: value for name, value in values.items() if name in cls.model_fields and value != []}
        made = cls.__new__(cls)
        made._validate(known, recorded=True)
        made.__pydantic_fields_set__.intersection_update(made.acting())
        return made

    def but(self, **changes: Any) -> Self:
        """The same settings with ``changes``, checked again; what was given before and acts no more is let go.

        Raises:
            UsageError: as at construction; a change that cannot act is refused.
        """
        kept = {name: getattr(self, name) for name in self.model_fields_set - changes.keys()}
        acting = type(self).recorded({**kept, **changes}).acting()
        return type(self)(**{name: value for name, value in kept.items() if name in acting}, **changes)

    def values(self) -> dict[str, Any]:
        """All settings as JSON holds them."""
        return self.model_dump(mode="json")

    def acting(self) -> set[str]:
        """Names of the settings that act in this combination."""
        return {name for name in type(self).model_fields if self._acts(name)}

    def require_acting(
        self,
        names: Collection[str],
        acts: Mapping[str, Sequence[Condition]] = {},
        given: Mapping[str, Any] = {},
    ) -> None:
        """Refuse what is given and cannot act.

        Args:
            names: of settings, or of what ``acts`` tells the conditions of.
            acts: conditions of further options, by name; ``given``: their values.

        Raises:
            UsageError: naming the first one, and what it would need.
        """
        for name in sorted(names):
            conditions = acts[name] if name in acts else about(type(self), name).acts
            if conditions and not any(self._meets(condition) for condition in conditions):
                raise self._idle(name, conditions, off=given.get(name, getattr(self, name, None)) is False)

    def _acts(self, name: str) -> bool:
        conditions = about(type(self), name).acts
        return not conditions or any(self._meets(condition) for condition in conditions)

    def _meets(self, condition: Condition) -> bool:
        return all(_fits(getattr(self, other), wanted) for other, wanted in condition.items())

    def _idle(self, name: str, conditions: Sequence[Condition], *, off: bool) -> UsageError:
        kind = type(self)
        spelled = spell(kind, name)
        if (
            off
            and spelled.startswith("--")
            and (name not in kind.model_fields or kind.model_fields[name].default is True)
        ):
            spelled = f"--no-{spelled[2:]}"
        unmet = {other: wanted for other, wanted in conditions[0].items() if not _fits(getattr(self, other), wanted)}
        found = " and ".join(f"{spell(kind, other)} {_written(getattr(self, other))}" for other in unmet)
        needed = " or with ".join(
            " and ".join(f"{spell(kind, other)} {_wish(wanted)}" for other, wanted in condition.items())
            for condition in conditions
        )
        return UsageError(f"{spelled} does nothing with {found}.", f"Leave it out; it acts with {needed}.")


def about(kind: type[Settings], name: str) -> About:
    """What the field ``name`` says of itself."""
    extra = kind.model_fields[name].json_schema_extra
    found = extra.get("about") if isinstance(extra, dict) else None
    return found if isinstance(found, About) else About()


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The values of a field that is a ``Literal`` or :class:`OneOf`, else nothing."""
    for item in field.metadata:
        if isinstance(item, OneOf):
            return tuple(item.names())
    for kind in _alternatives(field.annotation):
        if get_origin(kind) is Literal:
            return tuple(value for value in get_args(kind) if isinstance(value, str))
    return ()


def plain_type(field: FieldInfo) -> type:
    """The type of a field's values as the command line reads it: bool, int, float or str (layers and choices too)."""
    for kind in _alternatives(field.annotation):
        if kind in (bool, int, float):
            return kind  # type: ignore[no-any-return]
        if get_origin(kind) is Annotated and get_args(kind)[0] in (int, float):
            return get_args(kind)[0]  # type: ignore[no-any-return]
    return str


def option_of(kind: type[Settings], name: str) -> str:
    """The command line's spelling, dashes included."""
    chosen = about(kind, name).option if name in kind.model_fields else None
    return "--" + (chosen or name.replace("_", "-"))


@contextmanager
def spelled_as_options() -> Iterator[None]:
    """Within, errors call settings by their options: ``--false-positive-rate`` instead of ``false_positive_rate``."""
    token = _OPTIONS.set(True)
    try:
        yield
    finally:
        _OPTIONS.reset(token)


def spell(kind: type[Settings], name: str) -> str:
    """How an error calls a setting."""
    return option_of(kind, name) if _OPTIONS.get() else name


def require_choice(spelled: str, value: str, known: Sequence[str]) -> None:
    """Refuse a value that is none of ``known``, with the nearest one.

    Raises:
        UsageError: naming what there is.
    """
    if value not in known:
        hint = did_you_mean(value, known)
        raise UsageError(f"{spelled} cannot be {value!r}.", f"It is {listed(known)}. {hint}".strip())


def listed(names: Sequence[str]) -> str:
    """``a, b or c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types of a union without None; of any other type, that one."""
    if get_origin(annotation) in (Union, UnionType):
        return tuple(kind for kind in get_args(annotation) if kind is not NoneType)
    return (annotation,)


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is POSITIVE:
        return bool(value is not None and value > 0)
    return value in wanted if isinstance(wanted, tuple) else bool(value == wanted)


def _wish(wanted: Any) -> str:
    if wanted is POSITIVE:
        return "above 0"
    return listed([_written(one) for one in wanted]) if isinstance(wanted, tuple) else _written(wanted)


def _written(value: Any) -> str:
    if value is None:
        return "left out"
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


_LIMITS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "above"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "below"),
}


def _refusal(kind: type[Settings], error: ValidationError) -> UsageError:
    """The first of pydantic's errors as two readable sentences."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    name = place[0] if place else ""
    value, context = first.get("input"), first.get("ctx", {})
    if first["type"] == "extra_forbidden":
        names = list(kind.model_fields)
        hint = did_you_mean(name, names)
        return UsageError(f"{kind.__name__} has no setting {name!r}.", f"{hint or f'It has {listed(names)}.'}")
    spelled = spell(kind, name)
    field = kind.model_fields.get(name)
    if field is not None and (known := choices(field)):
        try:
            require_choice(spelled, str(value), known)
        except UsageError as refused:
            return refused
    if first["type"] in _LIMITS:
        key, words = _LIMITS[first["type"]]
        limit = context[key]
        shown = f"{limit:g}" if limit % 1 else str(int(limit))
        return UsageError(f"{spelled} cannot be {value!r}.", f"It is {words} {shown}.")
    if "advice" in context:  # of a type that knows what would be right
        return UsageError(f"{spelled} {value!r} {first['msg']}.", context["advice"])
    if first["type"] == "missing":
        return UsageError(f"{spelled} is needed.", field.description if field and field.description else "Give it.")
    if first["type"] == "too_short":
        return UsageError(f"{spelled} names nothing.", "Name at least one, or leave it out.")
    return UsageError(f"{spelled} cannot be {value!r}.", f"{first['msg']}.")
