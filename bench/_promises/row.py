"""A row of the table of promises, what it measures with, and how attempts are counted."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from safetykit import cli
from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.store import load_adapter
from safetykit.adapters.errors import SafetykitError
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.export.pipeline.export import export_onnx
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.reference import reference_path

T = TypeVar("T")
KEPT = 20  # failures that are kept by name


@dataclass(frozen=True)
class Figure:
    """What a row came to.

    Attributes:
        measured: the figure in words.
        held: whether it reaches the target.
        failures: the first of what should not have been, by name.
        counts: figures that the words are made of.
    """

    measured: str
    held: bool
    failures: tuple[str, ...] = ()
    counts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A promise with its measurement.

    Attributes:
        name: by which ``--only`` asks for it, and of its file of results.
        promise: in a few words.
        target: the figure that holds it.
        measure: makes the figure.
    """

    name: str
    promise: str
    target: str
    measure: Callable[[Place], Figure]


def command(*words: Any) -> tuple[int, str]:
    """The command line in this process: its exit code, and what it said to stderr."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            cli.main([str(one) for one in words])
        except SystemExit as done:
            return int(done.code or 0), said.getvalue()
    return 0, said.getvalue()


class Tally:
    """Attempts, of which each must end as promised."""

    def __init__(self) -> None:
        self.total = 0
        self.failures: list[str] = []
        self.untyped = 0

    @property
    def held(self) -> bool:
        """Whether all did, and there were any."""
        return self.total > 0 and not self.failed

    @property
    def failed(self) -> int:
        """How many did not."""
        return len(self.failures)

    def refused(
        self,
        name: str,
        act: Callable[[], object],
        kind: type[SafetykitError] | tuple[type[SafetykitError], ...] = SafetykitError,
        naming: str = "",
    ) -> None:
        """``act`` must raise an error of this kind, whose text names ``naming``."""
        self.total += 1
        try:
            act()
        except kind as error:
            if naming.casefold() not in str(error).casefold():
                self.failures.append(f"{name}: refused without naming {naming}: {error}"[:300])
        except Exception as error:
            self.untyped += not isinstance(error, SafetykitError)
            self.failures.append(f"{name}: {type(error).__name__}: {error}"[:300])
        else:
            self.failures.append(f"{name}: accepted")

    def accepted(self, name: str, act: Callable[[], object]) -> None:
        """``act`` must succeed."""
        self.total += 1
        try:
            act()
        except Exception as error:
            self.failures.append(f"{name}: {type(error).__name__}: {error}"[:300])

    def true(self, name: str, holds: bool) -> None:
        """Something must hold."""
        self.total += 1
        if not holds:
            self.failures.append(name)

    def figure(self, words: str, counts: Mapping[str, Any] | None = None) -> Figure:
        """``N of M`` and the words."""
        said = f"{self.total - self.failed:,} of {self.total:,} {words}"
        if self.untyped:
            said += f", {self.untyped:,} errors untyped"
        found = {"total": self.total, "failed": self.failed, "untyped": self.untyped, **(counts or {})}
        return Figure(said, self.held, tuple(self.failures[:KEPT]), found)


class Place:
    """The folder in which rows are measured, and what several of them need: made when first asked for, and kept.

    Attributes:
        folder: for what rows make.
        quick: few cases where there are many.
    """

    def __init__(self, folder: Path, *, quick: bool = False) -> None:
        self.folder, self.quick = folder, quick
        folder.mkdir(parents=True, exist_ok=True)

    def some(self, many: T, few: T) -> T:
        """``many`` cases, or ``few`` if it is to be quick."""
        return few if self.quick else many

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """An empty folder, gone after the block."""
        folder = self.folder / "scratch" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def model(self) -> Path:
        """The checkpoint: the reference VLM `mild`."""
        return reference_path("mild")

    @cached_property
    def vlm(self) -> VLM:
        """It, loaded."""
        return VLM.from_pretrained(self.model)

    @cached_property
    def records(self) -> list[Record]:
        """What adapters are fitted on."""
        found = load_records(data_path("reference"), ["fit", "calibration"])
        halves = [[one for one in found if one.split == split] for split in ("fit", "calibration")]
        return [one for half in halves for one in subset(half, self.some(len(half), 120))]

    def asked(self, limit: int) -> list[Record]:
        """Test records."""
        return subset(load_records(data_path("reference"), ["test"]), limit)

    @cached_property
    def guard(self) -> Path:
        """An adapter folder: VLM-Guard with its defaults."""
        return self._made("guard", lambda out: VLMGuard().fit(self.vlm, self.records).save(out))

    @cached_property
    def adapter(self) -> Adapter:
        """The same, loaded."""
        return load_adapter(self.guard)

    @cached_property
    def base(self) -> Path:
        """The export of the unmodified model."""
        return self._made("base", lambda out: export_onnx(self.vlm, [], out))

    @cached_property
    def export(self) -> Path:
        """The export of the adapter, with decisions compared on a few records."""
        records = self.asked(self.some(60, 20))
        return self._made(
            "export", lambda out: export_onnx(self.vlm, [self.adapter], out, base_onnx=self.base, records=records)
        )

    def _made(self, name: str, make: Callable[[Path], object]) -> Path:
        out = self.folder / (f"{name}-quick" if self.quick else name)
        if not out.is_dir():
            make(out)
        return out
