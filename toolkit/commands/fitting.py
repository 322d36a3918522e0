"""`safetykit fit METHOD`: the command line of a method, made from what the method declares.

Options are the fields of its settings, and one for each thing it takes besides; nothing here names a method.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from ...adapters.budget import Budget
from ...adapters.method import Method
from ...adapters.registry import methods
from ...adapters.settings import spelled_as_options
from ..data.options import ReadOptions
from ..distributed.job import sharing
from ..model.options import LoadOptions
from . import options
from .common import reads_artifacts
from .derived import given, offered
from .signatures import signed

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
    "on": (
        typer.Option(
            "--on", help="Base export in int4 or int8: fit on its rounded weights, for exports of these graphs."
        ),
        Path,
    ),
    "gate_by": (
        typer.Option(
            "--gate-by",
            help="Fitted detector (one-pass, or a streaming guard) whose probe decides which requests are pushed.",
        ),
        Path,
    ),
    "resume": (
        typer.Option(
            "--resume/--no-resume",
            help="Go on from where an interrupted fit of the same settings was.",
            show_default="resume",
        ),
        bool,
    ),
}
OpenBase = Callable[[Path], Any]  # a base export's folder → a :class:`.fit_call.GraphBase`
_CORRECTORS = "corrected_by"  # "with" is no name in Python


def fit_group(open_base: OpenBase) -> typer.Typer:
    """`safetykit fit`, with a command for each method there is.

    Args:
        open_base: reads the folder of ``--on``.
    """
    group = typer.Typer(no_args_is_help=True)
    for method in methods().values():
        example = f"Example: safetykit fit {method.name} MODEL --data DATA -o ADAPTER {method.example}".rstrip()
        group.command(method.name, help=method.summary, short_help=method.summary, epilog=example)(
            reads_artifacts(command_of(method, open_base))
        )
    return group


def command_of(method: Method, open_base: OpenBase) -> Callable[..., None]:
    """The function behind `safetykit fit METHOD`, with the signature that Typer reads options from."""

    reads = method.data == "records"
    budgeted = method.budgeted or method.sweep is not None
    own = tuple(method.settings.model_fields)  # TGA's rows per pass are a part of what it learns

    def fit(**typed: Any) -> None:
        from .fit_plan import require_layers

        inputs = {name: value for name in method.takes if (value := typed[_parameter(name)]) not in (None, [])}
        with spelled_as_options():
            loading = LoadOptions(**given(LoadOptions, {**dict.fromkeys(LoadOptions.model_fields), **typed}, own))
            reading = ReadOptions(**given(ReadOptions, typed)) if reads else None
            budget = Budget(**given(Budget, typed)) if budgeted else None
            require_layers(method, given(method.settings, typed), typed["model"])
        from .fit_call import FitCall
        from .fit_one import fit_and_save

        call = FitCall(
            method,
            given(method.settings, typed),
            inputs,
            open_base,
            loading,
            reading,
            sweep=typed.get("sweep", False),
            budget=budget if budget is not None and budget.given else None,
        )
        fit_and_save(
            call,
            typed["model"],
            typed["data"],
            typed["out"],
            overwrite=typed["overwrite"],
            as_json=typed["as_json"],
        )

    parameters = [_argument("model", options.Model), _argument("data", _DATA[method.data])]
    parameters.append(_argument("out", options.AdapterOut))
    parameters += [_input(name, required=True) for name in method.needs]
    parameters += offered(method.settings)
    parameters += [_input(name) for name in method.takes if name not in method.needs]
    parameters += offered(LoadOptions, own)
    parameters += offered(ReadOptions) if reads else []
    if method.sweep is not None:
        parameters.append(_argument("sweep", options.Sweep, default=False))
    parameters += offered(Budget) if budgeted else []
    parameters.append(_argument("overwrite", options.Overwrite, default=False))
    parameters.append(_argument("as_json", options.Json, default=False))
    taken = [parameter.name for parameter in parameters]
    if twice := {name for name in taken if taken.count(name) > 1}:
        raise TypeError(f"{method.title}: {', '.join(sorted(twice))} is an option of every fit, or twice a setting.")
    fit.__name__, fit.__doc__ = method.name, method.summary
    return sharing(signed(fit, parameters))


def _parameter(name: str) -> str:
    return _CORRECTORS if name == "with" else name


def _argument(name: str, annotation: Any, default: Any = Parameter.empty) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _input(name: str, required: bool = False) -> Parameter:
    option, kind = _INPUTS[name]
    if required:
        return _argument(_parameter(name), Annotated[kind, option])
    return _argument(_parameter(name), Annotated[kind | None, option], default=None)
