"""What a grid comes to: which adapters are fitted, and which cells are answered, each in a file of its own.

A file is named by what it holds and by ten digits of the SHA-256 of everything that it depends on. So what is finished
is known by its name, and what other grids left in the same folder is neither mistaken for it nor lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from ...adapters.artifact.files import EXPORT_MANIFEST, MANIFEST
from ...adapters.artifact.fingerprint import fingerprint
from ...adapters.artifact.hub import located
from ...adapters.artifact.manifest import canonical_json
from ...adapters.errors import InvalidArtifact, UsageError
from ...adapters.method import Method
from ..data.record import Split
from ..data.records import Records
from ..data.sources import is_address, is_export, model_path
from .entries import Benchmark, Defence, ModelEntry, Part
from .grid import Grid

Kind = Literal["checkpoint", "export", "server"]
CELLS, ADAPTERS = "cells", "adapters"


def digest_of(value: JsonValue) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def refusal_of(folder: Path) -> Path:
    """The file that says why the adapter of a folder cannot be fitted."""
    return folder.with_name(f"{folder.name}.refused.json")


def refused_at(folder: Path) -> str:
    """Why the adapter of a folder cannot be fitted; empty where that is not known.

    Raises:
        InvalidArtifact: the file that says so is damaged.
    """
    path = refusal_of(folder)
    if not path.is_file():
        return ""
    try:
        return str(json.loads(path.read_bytes())["refused"])
    except (ValueError, KeyError, TypeError):
        raise InvalidArtifact(f"{path} is damaged.", "Remove it, and the same command fits again.") from None


@dataclass(frozen=True)
class Subject:
    """A model of the grid.

    Attributes:
        name: in the grid.
        known: a checkpoint's fingerprint, an export's manifest digest, or a server's address.
        digest: of everything that its answers depend on.
    """

    name: str
    entry: ModelEntry
    kind: Kind
    known: str
    digest: str

    @classmethod
    def of(cls, name: str, entry: ModelEntry) -> Subject:
        """The model that is there.

        Raises:
            UsageError: there is none, or options that cannot act on it.
        """
        path = entry.path
        kind: Kind = "server" if is_address(path) else "export" if is_export(Path(path)) else "checkpoint"
        if kind != "checkpoint" and (given := entry.loading.model_fields_set - {"batch_size"}):
            raise UsageError(f"{sorted(given)[0]} does nothing for a {kind}.", "Leave it out.")
        if kind != "server" and entry.served_model is not None:
            raise UsageError(f"served-model does nothing for a {kind}.", "Leave it out.")
        if kind == "server":
            known = path
        elif kind == "export":
            known = hashlib.sha256((located(path) / EXPORT_MANIFEST).read_bytes()).hexdigest()
        else:
            known = fingerprint(model_path(path))
        how: dict[str, JsonValue] = {one: str(getattr(entry.loading, one)) for one in entry.loading.model_fields_set}
        digest = digest_of({"kind": kind, "known": known, "how": how, "served": entry.served_model})
        return cls(name, entry, kind, known, digest)


@dataclass(frozen=True)
class Fit:
    """An adapter that is fitted.

    Attributes:
        settings: with its seed.
        under: folders of the adapters that are applied while it is fitted.
        folder: where it will lie.
        data: digest of what it is fitted on.
    """

    subject: Subject
    method: Method
    part: Part
    settings: Mapping[str, Any]
    under: tuple[Path, ...]
    folder: Path
    data: str

    @property
    def done(self) -> bool:
        """Whether it is there, or known not to keep its budget."""
        return (self.folder / MANIFEST).is_file() or bool(refused_at(self.folder))


@dataclass(frozen=True)
class Arm:
    """A model with a defence.

    Attributes:
        name: the defence's, with its seed where it has one.
        row: the defence in the grid; all its seeds stand in one row of the results.
        adapters: folders, those that are there and those that will be.
        fits: which of them are fitted, in their order.
        identity: digest of what is put on the model.
    """

    subject: Subject
    name: str
    row: str
    seed: int | None
    defence: Defence
    adapters: tuple[Path, ...]
    fits: tuple[Fit, ...]
    identity: str

    @property
    def refused(self) -> str:
        """Why there is none, because a fit cannot keep its budget; empty where that is not known."""
        return next((why for folder in self.adapters if (why := refused_at(folder))), "")


@dataclass(frozen=True)
class Bench:
    """A benchmark with its records.

    Attributes:
        split: of the records; another one than the grid's where they only help to choose.
        revision: SHA-256 of the records, pixels included, as manifests and cards give it.
        digests: of each of them.
    """

    name: str
    entry: Benchmark
    split: Split
    records: Records
    revision: str
    max_new_tokens: int
    digests: frozenset[str] = frozenset()

    @property
    def chooses(self) -> bool:
        """Whether it is not reported, and only helps to choose."""
        return self.split != self.entry.split

    @property
    def called(self) -> str:
        """How progress, errors and files call it."""
        return f"{self.name}-{self.split}" if self.chooses else self.name


@dataclass(frozen=True)
class Cell:
    """An arm that answers a benchmark; ``path``: its evaluation."""

    arm: Arm
    bench: Bench
    path: Path

    @property
    def name(self) -> str:
        """How progress and errors call it."""
        return f"{self.arm.subject.name} × {self.arm.name} × {self.bench.called}"

    @property
    def done(self) -> bool:
        """Whether it is answered, or cannot be."""
        return self.path.is_file() or bool(self.arm.refused)


@dataclass(frozen=True)
class Plan:
    """Everything that a grid asks for, in a folder.

    Attributes:
        benches: those that are reported, then those that help to choose.
        cells: of every arm and all of these.
    """

    grid: Grid
    folder: Path
    subjects: tuple[Subject, ...]
    benches: tuple[Bench, ...]
    arms: tuple[Arm, ...]
    cells: tuple[Cell, ...]

    @property
    def fits(self) -> tuple[Fit, ...]:
        """Every adapter that is fitted, once, those that others need first."""
        found = {fit.folder: fit for arm in self.arms for fit in arm.fits}
        return tuple(found.values())

    def strangers(self) -> list[Path]:
        """Cells in the folder that are no part of this grid."""
        mine = {cell.path for cell in self.cells}
        return sorted(
            path for path in (self.folder / CELLS).rglob("*.json") if path not in mine and path.name[0] != "."
        )

    def benches_to(self, *, choose: bool) -> tuple[Bench, ...]:
        """Those that help to choose, or those that are reported."""
        return tuple(one for one in self.benches if one.chooses == choose)

    def cells_of(self, arm: Arm, *, choose: bool | None = None) -> list[Cell]:
        """The cells of an arm, in the order of the benchmarks; those that help to choose, the reported ones, or all."""
        return [cell for cell in self.cells if cell.arm is arm and choose in (None, cell.bench.chooses)]
