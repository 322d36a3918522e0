"""The one output sink: data on stdout, progress and errors on stderr.

Every command builds one JSON-able value; ``--json`` prints it as it is, a person gets it as text.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...adapters.errors import SafetykitError

INTERNAL = 1


def emit(value: Any, *, as_json: bool, human: Callable[[Any, Any], None]) -> None:
    """Print a command's result.

    Args:
        value: JSON-able.
        as_json: print it as JSON.
        human: draws it on a rich console (called with the console and the value) otherwise.
    """
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console

    human(Console(highlight=False), value)


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[int, int], None]]:
    """Yield ``update(done, total)``; a bar on stderr, drawn only on a terminal.

    Without a terminal each stage is one line, so that logs show where a long run is.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{description} ...", file=sys.stderr, flush=True)
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def steps() -> Iterator[Callable[[str], None]]:
    """Yield ``say(step)`` for work made of named steps; a spinner on a terminal, one line each elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda step: print(f"{step} ...", file=sys.stderr, flush=True)
        return
    start = time.monotonic()
    with console.status("starting") as status:
        yield lambda step: status.update(f"{step}  [dim]{time.monotonic() - start:.0f} s[/dim]")


def report_failure(error: BaseException) -> int:
    """Print what went wrong and what to do next on stderr; returns the exit code.

    No traceback reaches a user, unless ``SAFETYKIT_DEBUG`` is set.
    """
    if os.environ.get("SAFETYKIT_DEBUG"):
        traceback.print_exception(error)
    if isinstance(error, SafetykitError):
        print(f"error: {error.message}", file=sys.stderr)
        if error.next_step:
            print(f"next:  {error.next_step}", file=sys.stderr)
        return error.exit_code
    print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
    print("next:  This is a bug in safetykit; SAFETYKIT_DEBUG=1 shows where.", file=sys.stderr)
    return INTERNAL
