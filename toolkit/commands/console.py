"""The one output sink: data on stdout, progress, errors and what to do next on stderr.

Every command builds one JSON-able value; ``--json`` prints it as it is, a person gets it as text.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...adapters.errors import LeftBehind, SafetykitError, Unread
from ...adapters.extras import explained
from .progress import LiveWork, PlainWork, Work

_OWN = (LeftBehind, Unread)  # warnings in the words of this command line

INTERNAL, INTERRUPTED = 1, 130


@dataclass
class Run:
    """What the shared options of the running command say.

    Attributes:
        quiet: no progress and no hints on stderr.
        verbose: every step stays on the screen with its time, and libraries may speak.
        as_json: the result, or the error, is one JSON document on stdout.
        options: the resolved options, spelled as on the command line without dashes; see :func:`options_in_force`.
        made: a folder that was made of the model that was typed, with that and the words that make it.
    """

    quiet: bool = False
    verbose: bool = False
    as_json: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    made: tuple[str, str, str] | None = None


running = Run()


def start(**said: Any) -> None:
    """Forget the last command and note what is said of the one that starts now."""
    for name, value in vars(Run(**said)).items():
        setattr(running, name, value)


def options_in_force() -> dict[str, Any]:
    """The resolved options of the running command, given or default, JSON-able, for the artifact it writes.

    Left out is what says nothing about the artifact: where it goes, and how the command talks.
    """
    silent = ("out", "overwrite", "json", "quiet", "verbose", "config", "resume", "workers")
    return {name: _plain(value) for name, value in running.options.items() if name not in silent}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def as_typed(text: str, *, as_words: bool = False) -> str:
    """A text that calls the model as the user did, not by the folder that was made of it.

    Args:
        as_words: with the options that make it, as in a command.
    """
    if running.made is None:
        return text
    folder, typed, words = running.made
    return text.replace(folder, words if as_words else typed)


def command_line(*words: Any) -> str:
    """A command as one types it, for ``then``."""
    return shlex.join(["safetykit", *map(str, words)])


def emit(value: Any, *, as_json: bool, human: Callable[[Any, Any], None], then: str = "") -> None:
    """Print a command's result.

    Args:
        value: JSON-able.
        as_json: print it as JSON.
        human: draws it on a rich console (called with the console and the value) otherwise.
        then: the command that usually comes next; a hint on stderr, or ``next`` in the JSON object.
    """
    then = as_typed(then, as_words=True)
    if as_json:
        value = {**value, "next": then} if then and isinstance(value, dict) else value
        print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    human(Console(highlight=False), value)
    if then and not running.quiet:
        sys.stdout.flush()
        print(f"next:  {then}", file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Print on stderr what a user must know although the command succeeded."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """A line on stderr that says how a command goes about it; nothing with ``--quiet``."""
    if not running.quiet:
        print(text, file=sys.stderr, flush=True)


def note_pace(found: Mapping[str, float] | None) -> None:
    """How many records went through the model, and how fast (see :meth:`.progress.Work.throughput`)."""
    if found is not None:
        note(f"{found['records']:,} records in {found['seconds']:.1f} s, {found['records_per_second']:.3g} a second")


@contextmanager
def warnings_told() -> Iterator[None]:
    """Print what safetykit itself warns of as this command line does, until the block ends."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def told(message: Any, category: type[Warning], *given: Any, **named: Any) -> None:
            if issubclass(category, _OWN):
                warn(str(message))
            else:
                show(message, category, *given, **named)

        warnings.showwarning = told
        warnings.simplefilter("always", LeftBehind)
        warnings.simplefilter("once", Unread)
        yield


@contextmanager
def steps(first: str = "") -> Iterator[Callable[[str], None]]:
    """Yield ``say(step)`` for work made of named steps; it is drawn on stderr, see :func:`work`."""
    with work(first) as doing:
        yield doing


@contextmanager
def work(first: str = "") -> Iterator[Work]:
    """Show work on stderr: a live line on a terminal; elsewhere, or with ``--verbose``, plain lines.

    Without a terminal every step is a line, and a step that lasts gets one more every few seconds with its count and
    time, so that logs show where a long run is. ``--quiet`` shows nothing.
    """
    if running.quiet:
        yield Work(first)
        return
    kind = LiveWork if sys.stderr.isatty() and not running.verbose else PlainWork
    with kind(first, stamped=running.verbose) as doing:
        yield doing


def report_failure(error: BaseException, *, as_json: bool = False) -> int:
    """Print what went wrong and what to do next on stderr; returns the exit code.

    No traceback reaches a user, unless ``SAFETYKIT_DEBUG`` is set.

    Args:
        as_json: also print it as ``{"error": {...}}`` on stdout.
    """
    if os.environ.get("SAFETYKIT_DEBUG"):
        traceback.print_exception(error)
    error = explained(error)
    message, next_step, code = explain(error)
    if as_json or running.as_json:
        told = {"type": type(error).__name__, "message": message, "next_step": next_step, "exit_code": code}
        print(json.dumps({"error": told}, indent=2, ensure_ascii=False))
    complain(message, next_step)
    return code


def complain(message: str, next_step: str) -> None:
    """Print on stderr what was wrong and what to do next."""
    print(f"error: {message}", file=sys.stderr)
    if next_step:
        print(f"next:  {next_step}", file=sys.stderr, flush=True)


def _interrupted() -> tuple[str, str, int]:
    """What is said of a command that a signal ended, how it goes on, and its exit code."""
    from ...adapters.artifact.held import unfinished
    from ..data.journal import Journal
    from . import signals
    from .exit_codes import of_signal

    number = signals.asked.number or signal.SIGINT
    how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    journal, kept = Journal.unfinished, ", ".join(str(path) for path in unfinished() if path.exists())
    if journal and journal.done:
        parts = "1 finished part is" if len(journal.done) == 1 else f"{len(journal.done)} finished parts are"
        done = f"; {parts} kept in {journal.path}"
    else:
        done = f"; what is finished is kept in {kept}" if kept else ""
    then = "The same command goes on where it stopped." if done else "The same command begins anew."
    return f"{how}; no half-written file was left{done}", then, of_signal(number)


def explain(error: BaseException) -> tuple[str, str, int]:
    """What was wrong, what to do next, and the exit code."""
    if isinstance(error, SafetykitError):
        return as_typed(error.message), as_typed(error.next_step, as_words=True), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return _interrupted()
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # of the option parser
        from .hints import explain_usage

        return explain_usage(error)
    if isinstance(error, OSError):
        from ...adapters.artifact.system import failed, write_fault

        if (number := write_fault(error)) is not None:
            return explain(failed(number, str(error.filename or "The output")))
    message = f"{type(error).__name__}: {error}"
    return message, "This is a bug in safetykit; SAFETYKIT_DEBUG=1 shows where.", INTERNAL
