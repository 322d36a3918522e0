"""`safetykit fit METHOD`: the command line of a method, made from what the method declares.

Options are the fields of its settings, and one for each thing it takes besides; nothing here names a method.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from ...adapters.method import Method
from ...adapters.registry import methods
from ...adapters.settings import Settings, about, choices, option_of, plain_type
from . import options

_DATA = {
    "records": options.Data,
    "captions": Annotated[str, typer.Option("--data", help="Captioned pictures: a JSONL file, or `reference`.")],
}
# Of what a method takes: the option's type, and what stands for "not given".
_INPUTS: dict[str, tuple[Any, Any]] = {
    "refusal": (
        typer.Option(
            "--refusal",
            help="What a refused user reads.",
            show_default="the model's own most frequent refusal",
        ),
        str,
    ),
    "map": (typer.Option("--map", help="Channel map of safetykit diagnose; names the layers."), Path),
    "map_layers": (typer.Option("--map-layers", min=1, help="How many layers to take from the map."), int),
    "with": (typer.Option("--with", help="Adapter that is applied while fitting; repeat to stack."), list[Path]),
    "index": (typer.Option("--index", help="Caption index, from `safetykit index build`."), Path),
    "encoder": (typer.Option("--encoder", help="The index's encoder, for captions it lacks."), Path),
    "text_model": (typer.Option("--text-model", help="Separate aligned model to take the direction from."), str),
    "resume": (
        typer.Option(
            "--resume/--no-resume",
            help="Go on from where an interrupted fit of the same settings was.",
            show_default="resume",
        ),
        bool,
    ),
}
_CORRECTORS = "corrected_by"  # "with" is no name in Python


def fit_group() -> typer.Typer:
    """`safetykit fit`, with a command for each method there is."""
    group = typer.Typer(no_args_is_help=True)
    for method in methods().values():
        example = f"Example: safetykit fit {method.name} MODEL --data DATA -o ADAPTER {method.example}".rstrip()
        group.command(method.name, help=method.summary, epilog=example)(command_of(method))
    return group


def command_of(method: Method) -> Callable[..., None]:
    """The function behind `safetykit fit METHOD`, with the signature that Typer reads options from."""
    fields = [name for name in method.settings.model_fields if not about(method.settings, name).hidden]

    def fit(**given: Any) -> None:
        from .fit_one import FitCall, fit_and_save

        settings = {name: value for name in fields if (value := given[name]) is not None}
        inputs = {name: value for name in method.takes if (value := given[_parameter(name)]) not in (None, [])}
        call = FitCall(method, settings, inputs, sweep=given.get("sweep", False))
        fit_and_save(
            call,
            given["model"],
            given["data"],
            given["out"],
            overwrite=given["overwrite"],
            as_json=given["as_json"],
        )

    parameters = [_argument("model", options.Model), _argument("data", _DATA[method.data])]
    parameters.append(_argument("out", options.AdapterOut))
    parameters += [_input(name, required=True) for name in method.needs]
    parameters += [_setting(method.settings, name) for name in fields]
    parameters += [_input(name) for name in method.takes if name not in method.needs]
    if method.sweep is not None:
        parameters.append(_argument("sweep", options.Sweep, default=False))
    parameters.append(_argument("overwrite", options.Overwrite, default=False))
    parameters.append(_argument("as_json", options.Json, default=False))
    taken = [parameter.name for parameter in parameters]
    if twice := {name for name in taken if taken.count(name) > 1}:
        raise TypeError(f"{method.title}: {', '.join(sorted(twice))} is an option of every fit, or twice a setting.")
    fit.__name__, fit.__doc__ = method.name, method.summary
    fit.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    fit.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return fit


def _parameter(name: str) -> str:
    return _CORRECTORS if name == "with" else name


def _argument(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _input(name: str, required: bool = False) -> Parameter:
    option, kind = _INPUTS[name]
    if required:
        return _argument(_parameter(name), Annotated[kind, option])
    return _argument(_parameter(name), Annotated[kind | None, option], default=None)


def _setting(settings: type[Settings], name: str) -> Parameter:
    """An option that is None unless it is given, so that what was given is known."""
    field, said = settings.model_fields[name], about(settings, name)
    spelled, known = option_of(settings, name), choices(field)
    kind = plain_type(field)
    declared = spelled
    if kind is bool and field.default is True:
        declared = f"{spelled}/--no-{spelled.removeprefix('--')}"
    elif len(spelled) == len("--k"):
        declared = spelled[1:]
    shown = said.shown or ("on" if field.default is True else "off" if field.default is False else str(field.default))
    option = typer.Option(
        *([declared, spelled] if declared != spelled and kind is not bool else [declared]),
        help=field.description,
        metavar="|".join(known) if known else None,
        show_default=shown if kind is not bool or field.default is True else False,
        autocompletion=(lambda: list(known)) if known else None,
    )
    return _argument(name, Annotated[kind | None, option], default=None)


fit = fit_group()
