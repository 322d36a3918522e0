"""Commands whose options are the fields of a :class:`Settings`: nothing about an option is written twice.

A command is a function with its own arguments and one called ``options``. The decorator gives Typer a signature in
which the fields stand in the place of ``options``, each None unless it is given, and makes the settings from what was::

    @takes(EvalOptions)
    def evaluate(model: Model, *, options: EvalOptions, as_json: Json = False) -> None: ...

A command that is put together from parameters (:mod:`.fitting`) takes those of :func:`offered` and reads them with
:func:`given`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ...adapters.settings import Settings, about, choices, option_of, plain_type, spelled_as_options
from . import console
from .signatures import signed

_OPTIONS, _LAST = "options", "as_json"


def takes(kind: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator for a command that takes settings of ``kind``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            one.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[one.name])
            for one in signature(command).parameters.values()
            if one.name != _OPTIONS
        ]

        @functools.wraps(command)
        def run(**typed: Any) -> None:
            with spelled_as_options():
                options = kind(**given(kind, typed))
                resolved = {option_of(kind, one).removeprefix("--"): getattr(options, one) for one in _names(kind)}
                console.running.options.update(resolved)
                command(**{one.name: typed[one.name] for one in own}, options=options)

        last = [one for one in own if one.name == _LAST]
        return signed(run, [*(one for one in own if one.name != _LAST), *offered(kind), *last])

    return decorate


def offered(kind: type[Settings], taken: Collection[str] = ()) -> list[Parameter]:
    """The fields that the command line offers, as parameters that Typer reads; without those whose name is taken."""
    return [_parameter(kind, name) for name in _names(kind) if name not in taken]


def given(kind: type[Settings], typed: dict[str, Any], taken: Collection[str] = ()) -> dict[str, Any]:
    """The settings of ``kind`` among what was typed, but those whose name is taken."""
    names = [name for name in _names(kind) if name not in taken]
    return {name: value for name in names if (value := typed[name]) not in (None, [])}


def _names(kind: type[Settings]) -> list[str]:
    return [name for name in kind.model_fields if not about(kind, name).hidden]


def _parameter(kind: type[Settings], name: str) -> Parameter:
    """A field's name, type, help, choices, and what it is when it is not given."""
    field, said = kind.model_fields[name], about(kind, name)
    known, values = choices(field), _type(kind, name)
    shown = said.shown or ("on" if field.default is True else str(field.default))
    option = typer.Option(
        *_spellings(option_of(kind, name), opposite=field.default is True),
        help=field.description,
        metavar="|".join(known) if known else None,
        show_default=False if field.is_required() or shown in ("None", "False") else shown,
        autocompletion=(lambda: list(known)) if known else None,
    )
    if field.is_required():
        return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[values, option])
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[values | None, option], default=None)


def _spellings(spelled: str, opposite: bool) -> tuple[str, ...]:
    """How an option may be typed: ``--k`` as ``-k`` too; what is on by default, with its opposite."""
    if opposite:
        return (f"{spelled}/--no-{spelled.removeprefix('--')}",)
    return (spelled[1:], spelled) if len(spelled) == len("--k") else (spelled,)


def _type(kind: type[Settings], name: str) -> Any:
    """What Typer reads: a list for what can be repeated, a path, or a plain type."""
    annotation = kind.model_fields[name].annotation
    if get_origin(annotation) is tuple:
        return list[get_args(annotation)[0]]  # type: ignore[misc]
    if Path in (annotation, *get_args(annotation)):
        return Path
    return plain_type(kind.model_fields[name])
