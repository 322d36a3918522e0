"""How work is shown on stderr: a live line on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any, Self

PATIENCE = 5.0  # seconds without a line after which a log gets one more


class Work:
    """What a long command says while it runs: calling it names the next step, :meth:`count` counts within one."""

    def __init__(self, first: str = "") -> None:
        self.step, self.done, self.total, self.held = first, 0, 0, ""
        self.began = self.step_began = time.monotonic()
        self._counted_before, self._seconds_before = 0, 0.0  # of counts that are over
        self._count_began = self._counted_at = self.began
        self._aside = False  # what is counted now is no part of the throughput

    def __call__(self, step: str) -> None:
        self._begin_count(time.monotonic())
        self.step, self.done, self.total, self.held = step, 0, 0, ""
        self.step_began = self._count_began
        self._moved()

    def count(self, done: int, total: int) -> None:
        """``done`` of ``total`` units of this step are done; a smaller number than before begins another count."""
        if done < self.done:
            self._begin_count(self._counted_at)
        self.done, self.total, self.held = done, total, ""
        self._counted_at = time.monotonic()
        self._counted()

    def aside(self, done: int, total: int) -> None:
        """As :meth:`count`, of units that are no part of the throughput, such as answers that are judged."""
        self.count(done, total)
        self._aside = True

    def hold(self, why: str) -> None:
        """Nothing is done for now, and why; an empty text: it goes on."""
        before, self.held = self.held, why
        if why != before:
            self._holds()

    def pace(self) -> str:
        """Units a second and the time left, as far as they are known; or why nothing is done."""
        if self.held:
            return self.held
        seconds = self._counted_at - self._count_began
        if not self.done or seconds <= 0:
            return ""
        rate = self.done / seconds
        left = max(0.0, (self.total - self.done) / rate - (time.monotonic() - self._counted_at))
        return f"{rate:.3g}/s, {_time(left)} left" if self.done < self.total else f"{rate:.3g}/s"

    def throughput(self) -> dict[str, float] | None:
        """Units that were counted so far, the seconds that took, and their quotient; None if there were none."""
        units, seconds = self._counted_before, self._seconds_before
        if not self._aside:
            units, seconds = units + self.done, seconds + self._counted_at - self._count_began
        if not units or seconds <= 0:
            return None
        return {"records": units, "seconds": round(seconds, 3), "records_per_second": round(units / seconds, 3)}

    def _begin_count(self, at: float) -> None:
        if not self._aside:
            self._counted_before += self.done
            self._seconds_before += self._counted_at - self._count_began
        self._aside = False
        self._count_began = self._counted_at = at
        self.done = 0

    def _moved(self) -> None: ...

    def _counted(self) -> None: ...

    def _holds(self) -> None: ...


def _time(seconds: float) -> str:
    """As one says it: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


class PlainWork(Work):
    """A line a step, and one more every few seconds while a step lasts.

    A thread writes the latter, because a step may be one long call that reports nothing.

    Args:
        first: the first step; empty: none yet.
        stamped: put the seconds since the start before every line.
    """

    def __init__(self, first: str = "", *, stamped: bool = False) -> None:
        super().__init__(first)
        self._stamped = stamped
        self._said = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        if self.step:
            self._moved()
        self._thread.start()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._over.set()
        self._thread.join()

    def _moved(self) -> None:
        self._print(f"{self.step} ...")

    def _holds(self) -> None:
        if self.held:
            self._print(f"{self.held} ...")

    def _watch(self) -> None:
        while not self._over.wait(min(PATIENCE, 0.5)):
            if time.monotonic() - self._said < PATIENCE:
                continue
            pace = f"{pace}, " if (pace := self.pace()) else ""
            count = f"{self.done} of {self.total}, {pace}" if self.total else pace
            self._print(f"{self.step or 'working'}: {count}{time.monotonic() - self.step_began:.0f} s")

    def _print(self, line: str) -> None:
        self._said = time.monotonic()
        stamp = f"[{self._said - self.began:7.1f} s] " if self._stamped else ""
        print(stamp + line, file=sys.stderr, flush=True)


class LiveWork(Work):
    """One moving line: the step, a bar and a count where there is one, and the time; it goes when the work is done."""

    def __init__(self, first: str = "", *, stamped: bool = False) -> None:
        super().__init__(first)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[counted]}"),
            TimeElapsedColumn(),
        )
        self._live = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._live.add_task(first or "working", total=None, counted="")

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        self._live.__exit__(*failure)

    def _moved(self) -> None:
        self._live.reset(self._task, description=self.step, total=None, counted="")

    def _counted(self) -> None:
        counted = f"{self.done}/{self.total} {self.pace()}".strip() if self.total else self.held
        self._live.update(self._task, completed=self.done, total=self.total or None, counted=counted)

    def _holds(self) -> None:
        self._counted()
