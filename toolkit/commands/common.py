"""What every command takes: ``--config``, ``--quiet`` and ``--verbose``, put on where the command line is assembled.

Commands that open adapters, indexes or exports also take ``--policy`` and ``--require-signature``.
"""

from __future__ import annotations

import inspect
import os
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import wraps
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from typer.models import OptionInfo

from ...adapters.errors import UsageError
from ..distributed import job
from . import console
from .config import defaults_of, spelling
from .signatures import signed

C = TypeVar("C", bound=Callable[..., Any])


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Let options that are not given come from the file; runs before the others are read."""
    if path is not None and not context.resilient_parsing:
        context.default_map = {**(context.default_map or {}), **defaults_of(path, context)}
    return path


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        callback=_read_config,
        is_eager=True,
        help="YAML file: options that are not given here, named as here without the dashes.",
    ),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress and no hints on stderr.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Keep every step with its time; let libraries speak.")]

# Taken by commands that take a model: what it is made of before they load it.
_OF_MODEL = {
    "base": Annotated[Path | None, typer.Option("--base", help="Checkpoint that MODEL, a PEFT adapter, belongs to.")],
    "chat_template": Annotated[
        Path | None,
        typer.Option(
            "--chat-template",
            help="Jinja file in the place of the chat template of MODEL, a checkpoint: then another base.",
        ),
    ],
}

# Taken by commands that open adapters or exports: they hold for all of these, by whatever option they are named.
_TRUST = {
    "policy": (
        Annotated[
            Path | None,
            typer.Option("--policy", help="Whose signed folders are accepted; SAFETYKIT_POLICY for all."),
        ],
        None,
    ),
    "require_signature": (
        Annotated[
            bool,
            typer.Option(
                "--require-signature", help="Refuse what is not signed; SAFETYKIT_REQUIRE_SIGNATURE=1 for all."
            ),
        ],
        False,
    ),
}

_SHARED = {"config": (Config, None), "quiet": (Quiet, False), "verbose": (Verbose, False)}
_MODEL = "model"


def reads_artifacts(command: C) -> C:
    """A command that opens adapters or exports, and therefore takes a policy."""
    command.reads_artifacts = True  # type: ignore[attr-defined]
    return command


def with_common_options(command: Any) -> Any:
    """A command, or a group with each of its commands, that takes what all commands take."""
    if not isinstance(command, typer.Typer):
        return _taking_common(command)
    for one in command.registered_commands:
        if one.callback is not None:
            one.callback = _taking_common(one.callback)
    return command


def _taking_common(function: Callable[..., Any]) -> Callable[..., Any]:
    if getattr(function, "takes_common", False):
        return function
    signature = inspect.signature(function, eval_str=True)
    trusts = getattr(function, "reads_artifacts", False)
    common = {
        name: one for name, one in _SHARED.items() if name not in signature.parameters
    }  # a grid is a --config, too

    @wraps(function)
    def command(*, context: typer.Context, **given: Any) -> Any:
        told = {name: given.pop(name) for name in common}
        quiet, verbose = bool(told["quiet"]), bool(told["verbose"])
        if quiet and verbose:
            raise UsageError("--quiet and --verbose exclude each other.", "Leave out one of them.")
        spelled = {spelling(one): given[one.name] for one in context.command.params if one.name in given}
        console.start(quiet=quiet, verbose=verbose, as_json=bool(given.get("as_json")), options=spelled)
        made_of = {name: given.pop(name) for name in _OF_MODEL if name in given and name not in signature.parameters}
        _let_libraries_speak(verbose)
        policy, required = (given.pop(name) for name in _TRUST) if trusts else (None, False)
        with _shared_or_alone(function, context), _trusted(policy, required):
            if any(made_of.values()):
                given[_MODEL] = _made(given[_MODEL], **made_of)
            return function(**given)

    kept = [_reading_paths(each.replace(kind=Parameter.KEYWORD_ONLY)) for each in signature.parameters.values()]
    shared = {**(_TRUST if trusts else {}), **common}
    added = [
        _reading_paths(Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default))
        for name, (annotation, default) in shared.items()
    ]
    if _MODEL in signature.parameters:
        for name, annotation in _OF_MODEL.items():
            added.append(_reading_paths(Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=None)))
    context = Parameter("context", Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = [context, *kept, *added]
    command.takes_common = True  # type: ignore[attr-defined]
    return signed(command, parameters)


def _shared_or_alone(function: Callable[..., Any], context: typer.Context) -> AbstractContextManager[None]:
    """The job that shares the work of a command.

    Raises:
        UsageError: it has several processes, and the command cannot use them.
    """
    if getattr(function, "shares_work", False):
        return job.current().joined()
    job.require_one(context.command_path)
    return nullcontext()


def _trusted(policy: Path | None, required: bool) -> AbstractContextManager[None]:
    """The policy that was typed; the environment's is in force anyway."""
    if policy is None and not required:
        return nullcontext()
    from ...adapters.artifact.policy import trusting

    return trusting(policy, require_signature=required)


def _path(text: str | Path) -> Path:
    """A path as it was typed, or a default; an empty one would silently mean the current folder.

    Raises:
        UsageError: it is empty.
    """
    if not str(text).strip():
        raise UsageError("An empty text names no file or folder.", "Write its path; `.` is the current folder.")
    return Path(text)


def _reading_paths(parameter: Parameter) -> Parameter:
    """A parameter whose paths are read by :func:`_path`."""
    if get_origin(parameter.annotation) is not Annotated:
        return parameter
    kind, about = get_args(parameter.annotation)
    inner = {one for outer in (kind, *get_args(kind)) for one in (outer, *get_args(outer))}
    if Path not in inner or about.parser is not None:
        return parameter
    read = copy(about)
    read.parser = _path
    if isinstance(about, OptionInfo):
        read.metavar = about.metavar or "<path>"
    return parameter.replace(annotation=Annotated[kind, read])


def _made(model: str | None, base: Path | None, chat_template: Path | None) -> str:
    """The folder of a PEFT adapter merged into its base, with another chat template."""
    if model is None and base is not None:
        raise UsageError("--base does nothing without a PEFT adapter as --model.", "Leave it out.")
    if model is None:
        raise UsageError("--chat-template does nothing without a checkpoint as --model.", "Leave it out.")
    from ..model.chat_template import with_chat_template
    from ..model.peft_folder import checkpoint_path

    with console.steps("merging" if base is not None else "reading"):
        folder = checkpoint_path(model, base)
        found = str(folder if chat_template is None else with_chat_template(folder, chat_template))
    options = [("--base", base), ("--chat-template", chat_template)]
    words = [str(word) for option, value in options if value is not None for word in (option, value)]
    if found != model:
        console.running.made = (found, model, shlex.join([model, *words]))
    return found


def _let_libraries_speak(verbose: bool) -> None:
    """Libraries' bars and notes would drown ours; set before they are imported, and only if the user did not."""
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        return
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
