"""Tasks on several processes of this machine, one at a time each; they end with the process that started them.

A worker reads the grid again and finds its tasks there by name, so that nothing but names goes between processes.
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from ...adapters.artifact.policy import in_force, trusting
from ...adapters.errors import ProcessLost

Task = tuple[str, str]  # "fit" or "cell", and the path of what it makes


class Workers:
    """Processes that work on a plan.

    Args:
        grid: the file; ``folder``: where results go.
        count: how many there are.
    """

    def __init__(self, grid: Path, folder: Path, count: int) -> None:
        context = get_context("spawn")
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(there, grid, folder, in_force()), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *failure: Any) -> None:
        for pipe in self._pipes:
            pipe.close()  # a worker that waits for a task ends
        for process in self._processes:
            if failure[0] is not None:
                process.terminate()
            process.join()

    def run(self, tasks: Sequence[Task], done: Callable[[Task], None]) -> None:
        """Have all of them done, in any order.

        Raises:
            SafetykitError: what a task raised first.
            ProcessLost: a worker is gone.
        """
        waiting, busy = list(tasks), dict[Any, Task]()
        free = list(self._pipes)
        while waiting or busy:
            while waiting and free:
                pipe, task = free.pop(0), waiting.pop(0)
                pipe.send(task)
                busy[pipe] = task
            spoken: list[Any] = connection.wait(list(busy))
            for pipe in spoken:
                try:
                    error = pipe.recv()
                except (EOFError, ConnectionResetError):
                    raise ProcessLost("A process that worked on the grid is gone.") from None
                task = busy.pop(pipe)
                if error is not None:
                    raise error
                done(task)
                free.append(pipe)


def _work(pipe: Any, grid: Path, folder: Path, policy: Any) -> None:
    """Do tasks until there are no more."""
    from ...toolkit.commands import console, signals
    from ...toolkit.comparison.grid import load_grid
    from ...toolkit.comparison.planning import plan_of
    from ...toolkit.model.kept import Kept
    from .comparing import answer, make_fit

    threading.Thread(target=_end_with_parent, daemon=True).start()
    console.start(quiet=True)
    with suppress(KeyboardInterrupt), signals.heard(), trusting(policy):
        plan = plan_of(load_grid(grid)[0], folder)
        fits = {str(fit.folder): fit for fit in plan.fits}
        cells = {str(cell.path): cell for cell in plan.cells}
        models = Kept()
        while (task := _next(pipe)) is not None:
            kind, name = task
            try:
                make_fit(fits[name], models) if kind == "fit" else answer(cells[name], models)
                pipe.send(None)
            except Exception as error:
                pipe.send(_plain(error))


def _next(pipe: Any) -> Task | None:
    try:
        task: Task = pipe.recv()
    except (EOFError, ConnectionResetError):
        return None
    return task


def _plain(error: Exception) -> Exception:
    """An error that can be sent: of one that cannot, its words."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
