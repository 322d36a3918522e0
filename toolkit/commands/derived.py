"""Commands whose options are the fields of a :class:`Settings`: nothing about an option is written twice.

A command is a function with its own arguments and one called ``options``. The decorator gives Typer a signature in
which the fields stand in the place of ``options``, each None unless it is given, and makes the settings from what was::

    @takes(EvalOptions)
    def evaluate(model: Model, *, options: EvalOptions, as_json: Json = False) -> None: ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from ...adapters.settings import Settings, about, choices, option_of, plain_type, spelled_as_options
from . import console

_OPTIONS, _LAST = "options", "as_json"


def takes(kind: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator for a command that takes settings of ``kind``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = [name for name in kind.model_fields if not about(kind, name).hidden]
        hints = get_type_hints(command, include_extras=True)
        own = [
            one.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[one.name])
            for one in signature(command).parameters.values()
            if one.name != _OPTIONS
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            chosen = {name: value for name in names if (value := given.pop(name)) not in (None, [])}
            with spelled_as_options():
                options = kind(**chosen)
                resolved = {option_of(kind, name).removeprefix("--"): getattr(options, name) for name in names}
                console.running.options.update(resolved)
                command(**given, options=options)

        derived = [parameter(kind, name) for name in names]
        taken = [*(one for one in own if one.name != _LAST), *derived, *(one for one in own if one.name == _LAST)]
        run.__signature__ = Signature(taken)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in taken}
        return run

    return decorate


def parameter(kind: type[Settings], name: str) -> Parameter:
    """A field as a parameter that Typer reads: its name, type, help, choices, and what it is when it is not given."""
    field, said, spelled = kind.model_fields[name], about(kind, name), option_of(kind, name)
    known, values = choices(field), _type(kind, name)
    shown = said.shown or (None if field.default is None else str(field.default))
    option = typer.Option(
        spelled,
        help=field.description,
        metavar="|".join(known) if known else None,
        show_default=shown if shown and values is not bool and not field.is_required() else False,
    )
    if field.is_required():
        return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[values, option])
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=Annotated[values | None, option], default=None)


def _type(kind: type[Settings], name: str) -> Any:
    """What Typer reads: a list for what can be repeated, a path, or a plain type."""
    annotation = kind.model_fields[name].annotation
    if get_origin(annotation) is tuple:
        return list[get_args(annotation)[0]]  # type: ignore[misc]
    if Path in (annotation, *get_args(annotation)):
        return Path
    return plain_type(kind.model_fields[name])
