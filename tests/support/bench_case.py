"""A call of a benchmark with what shows that it acted, and what the checks look at."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import safetykit

BENCH = Path(safetykit.__file__).parent / "bench"


PARTS = BENCH / "real" / "parts"


@dataclass
class Ran:
    """What a benchmark did: what it printed, where it was to write, and what reached its replaced functions."""

    out: str
    path: Path
    calls: dict[str, list[list[Any]]]

    @property
    def value(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.out)

    def read(self, name: str) -> Any:
        """A JSON file of its results."""
        return json.loads((self.path / name).read_text())

    def only(self, name: str) -> list[Any]:
        """The arguments of the one call of a replaced function, keyword arguments last."""
        (call,) = self.calls[name]
        return call


@dataclass(frozen=True)
class BenchCase:
    """A call of a benchmark.

    Attributes:
        bench: its module below ``bench``, such as ``modes`` or ``real.score``.
        line: what is typed after its name.
        check: what must be true of what it did.
        replaced: by dotted name in its module, what a function returns in the place of measuring; a function is called
            with the arguments.
        slow: it takes more than two seconds.
    """

    bench: str
    line: str
    check: Callable[[Ran], Any]
    replaced: Mapping[str, Any] = field(default_factory=dict)
    slow: bool = False

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


NO_MODEL = {"VLM.from_pretrained": SimpleNamespace(fingerprint="f")}


SEEN = {"fingerprint": "f"}  # a checkpoint whose results are there
