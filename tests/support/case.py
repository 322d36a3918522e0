"""A command line of the tests with what shows that it acted; words in braces are made by the workshop."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from workshop import Outcome, Workshop


@dataclass(frozen=True)
class Case:
    """A command line and what must be true of its outcome.

    Attributes:
        kept: what the workshop calls the outcome, where the line is how it makes it.
        few: the bundled records are the workshop's few, for a command that takes no others.
    """

    line: str
    check: Callable[[Outcome, Workshop], Any]
    kept: str = ""
    few: bool = False

    def run(self, workshop: Workshop) -> Outcome:
        """The line's outcome."""
        if self.kept:
            return workshop.kept(self.kept)
        with workshop.few_records() if self.few else nullcontext():
            return workshop.run(self.line)

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)
