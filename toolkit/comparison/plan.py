"""What a grid comes to: which adapters are fitted, and which cells are answered, each in a file of its own.

A file is named by what it holds and by ten digits of the SHA-256 of everything that it depends on. So what is finished
is known by its name, and what other grids left in the same folder is neither mistaken for it nor lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from ... import __version__
from ...adapters.artifact.files import EXPORT_MANIFEST, MANIFEST
from ...adapters.artifact.fingerprint import fingerprint
from ...adapters.artifact.hub import located
from ...adapters.artifact.manifest import canonical_json
from ...adapters.errors import UsageError
from ...adapters.method import Method
from ...adapters.registry import get_method
from ..data.captions import captions_path, load_captions
from ..data.records import Records, load_records, subset
from ..data.sources import data_path, is_address, is_export, model_path
from .entries import NONE, Benchmark, Defence, ModelEntry, Part
from .grid import Grid
from .reading import part_of_grid

Kind = Literal["checkpoint", "export", "server"]
CELLS, ADAPTERS = "cells", "adapters"
_DIGITS = 10


def digest_of(value: JsonValue) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


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
        """Whether it is there."""
        return (self.folder / MANIFEST).is_file()


@dataclass(frozen=True)
class Arm:
    """A model with a defence.

    Attributes:
        name: the defence's, with a seed where there are several.
        adapters: folders, those that are there and those that will be.
        fits: which of them are fitted, in their order.
        identity: digest of what is put on the model.
    """

    subject: Subject
    name: str
    defence: Defence
    adapters: tuple[Path, ...]
    fits: tuple[Fit, ...]
    identity: str


@dataclass(frozen=True)
class Bench:
    """A benchmark with its records.

    Attributes:
        revision: SHA-256 of the records in their order, pixels included.
        digests: of each of them.
    """

    name: str
    entry: Benchmark
    records: Records
    revision: str
    max_new_tokens: int
    digests: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Cell:
    """An arm that answers a benchmark; ``path``: its evaluation."""

    arm: Arm
    bench: Bench
    path: Path

    @property
    def name(self) -> str:
        """How progress and errors call it."""
        return f"{self.arm.subject.name} × {self.arm.name} × {self.bench.name}"

    @property
    def done(self) -> bool:
        """Whether it is answered."""
        return self.path.is_file()


@dataclass(frozen=True)
class Plan:
    """Everything that a grid asks for, in a folder."""

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

    def cells_of(self, arm: Arm) -> list[Cell]:
        """The cells of an arm, in the order of the benchmarks."""
        return [cell for cell in self.cells if cell.arm is arm]


def plan_of(grid: Grid, folder: Path) -> Plan:
    """What the grid comes to; files are read, and no model is loaded.

    Raises:
        SafetykitError: a model, an adapter, records or captions are not there, or cannot be what the grid says.
    """
    subjects: list[Subject] = []
    for name, entry in grid.models.items():
        with part_of_grid(f"models.{name}"):
            subjects.append(Subject.of(name, entry))
    benches: list[Bench] = []
    for name, bench in grid.benchmarks.items():
        with part_of_grid(f"benchmarks.{name}"):
            benches.append(_bench(name, bench, grid))
    _require_apart(benches)
    arms = tuple(arm for one in subjects for arm in _arms(one, grid, folder, _Digests()))
    cells = tuple(_cell(arm, bench, folder) for arm in arms for bench in benches)
    return Plan(grid, folder, tuple(subjects), tuple(benches), arms, cells)


def _require_apart(benches: Sequence[Bench]) -> None:
    """Refuse benchmarks that share records: these would count as two pieces of evidence.

    Raises:
        UsageError: naming both.
    """
    for one, other in combinations(benches, 2):
        if both := one.digests & other.digests:
            raise UsageError(
                f"benchmarks.{other.name}: {len(both)} of its records are those of {one.name}, and would count twice.",
                "Leave out one of them, or name other records or another split.",
            )


def _bench(name: str, entry: Benchmark, grid: Grid) -> Bench:
    found = load_records(data_path(entry.data), [entry.split], skip_bad_rows=entry.skip_bad_rows)
    if entry.limit:
        found = found.of(subset(found, entry.limit))
    digests = [record.digest() for record in found]
    revision = hashlib.sha256("".join(digests).encode()).hexdigest()
    return Bench(name, entry, found, revision, entry.max_new_tokens or grid.max_new_tokens, frozenset(digests))


def _cell(arm: Arm, bench: Bench, folder: Path) -> Cell:
    identity = digest_of(
        {
            "model": arm.subject.digest,
            "arm": arm.identity,
            "records": bench.revision,
            "max_new_tokens": bench.max_new_tokens,
            "version": __version__,
        }
    )
    name = f"{bench.name}-{identity[:_DIGITS]}.json"
    return Cell(arm, bench, folder / CELLS / arm.subject.name / arm.name / name)


class _Digests:
    """Digests of what fits read, each made once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str, bool], str] = {}

    def of(self, method: Method, data: str, skip_bad_rows: bool) -> str:
        key = (method.data, data, skip_bad_rows)
        if key not in self._known:
            if method.data == "captions":
                parts = [one.digest() for one in load_captions(captions_path(data))]
            else:
                splits: Any = ("fit", "calibration")
                parts = [one.digest() for one in load_records(data_path(data), splits, skip_bad_rows=skip_bad_rows)]
            self._known[key] = hashlib.sha256("".join(parts).encode()).hexdigest()
        return self._known[key]


def _arms(subject: Subject, grid: Grid, folder: Path, digests: _Digests) -> Iterator[Arm]:
    for name, defence in grid.defences.items():
        if defence.models and subject.name not in defence.models:
            continue
        if subject.entry.baseline is not None and name != NONE and not defence.models:
            continue  # it stands for a defence itself
        if defence.stack and subject.kind != "checkpoint":
            raise UsageError(
                f"defences.{name}: an adapter cannot be put on {subject.name}, {_a(subject.kind)}.",
                f"Name the models that it is for: `models: [...]` below `{name}:`.",
            )
        seeds: list[int | None] = [None]
        if grid.seeds and any(part.seeded for part in defence.stack):
            seeds = [*grid.seeds]
        for seed in seeds:
            yield _arm(subject, name, defence, seed, folder, digests)


def _a(kind: Kind) -> str:
    return "an export, which holds its own" if kind == "export" else "a server, which has its own"


def _arm(subject: Subject, name: str, defence: Defence, seed: int | None, folder: Path, digests: _Digests) -> Arm:
    adapters: list[Path] = []
    fits: list[Fit] = []
    identities: list[JsonValue] = []
    for at, part in enumerate(defence.stack):
        where = f"defences.{name}" + (f".stack.{at}" if len(defence.stack) > 1 else "")
        if part.adapter is not None:
            adapters.append(path := located(part.adapter))
            if not (path / MANIFEST).is_file():
                raise UsageError(f"{where}: there is no adapter at {part.adapter}.", "Fit one, or mend the path.")
            identities.append(hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest())
            continue
        with part_of_grid(where):
            fit, identity = _fit(subject, part, seed, tuple(adapters), tuple(identities), folder, digests)
        fits.append(fit)
        adapters.append(fit.folder)
        identities.append(identity)
    shown = name if seed is None else f"{name}-seed{seed}"
    identity = digest_of({"adapters": identities, "defence": defence.defence})
    return Arm(subject, shown, defence, tuple(adapters), tuple(fits), identity)


def _fit(
    subject: Subject,
    part: Part,
    seed: int | None,
    before: tuple[Path, ...],
    identities: tuple[JsonValue, ...],
    folder: Path,
    digests: _Digests,
) -> tuple[Fit, str]:
    assert part.fit is not None and part.data is not None
    method = get_method(part.fit)
    settings, budget = dict(part.own), part.budget
    if seed is not None and part.seeded:
        settings["seed"] = seed
    under = before if "with" in method.takes else ()
    data = digests.of(method, part.data, part.skip_bad_rows)
    identity = digest_of(
        {
            "model": subject.digest,
            "method": method.name,
            "settings": settings,
            "sweep": part.sweep,
            **({"budget": budget.values()} if budget is not None else {}),
            "refusal": part.refusal,
            "data": data,
            "under": [*identities] if under else [],
            "version": __version__,
        }
    )
    path = folder / ADAPTERS / subject.name / f"{method.name}-{identity[:_DIGITS]}"
    return Fit(subject, method, part, settings, under, path, data), identity
