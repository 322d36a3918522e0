"""A grid made into a plan: files are read and digests taken, and no model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from ... import __version__
from ...adapters.artifact.files import MANIFEST
from ...adapters.artifact.hub import located
from ...adapters.artifact.manifest import describe_data
from ...adapters.errors import UsageError
from ...adapters.method import Method
from ...adapters.registry import get_method
from ..data.captions import captions_path, load_captions
from ..data.record import Split
from ..data.records import Records, load_records, subset
from ..data.sources import data_path
from .entries import NONE, Benchmark, Defence, Part
from .grid import Grid
from .plan import ADAPTERS, CELLS, Arm, Bench, Cell, Fit, Kind, Plan, Subject, digest_of
from .reading import part_of_grid

_DIGITS = 10


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
    if grid.choose_on is not None:
        benches += _choosing(grid, grid.choose_on)
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
                f"benchmarks.{other.called}: {len(both)} of its records are those of {one.called}, and would count "
                "twice.",
                "Leave out one of them, or name other records or another split.",
            )


def _bench(name: str, entry: Benchmark, grid: Grid) -> Bench:
    found = load_records(data_path(entry.data), [entry.split], skip_bad_rows=entry.skip_bad_rows)
    return _of_split(name, entry, entry.split, found, grid)


def _choosing(grid: Grid, split: Split) -> tuple[Bench, ...]:
    """The records that help to choose, of those benchmarks that have some."""
    found = []
    for name, entry in grid.benchmarks.items():
        records = load_records(data_path(entry.data), skip_bad_rows=entry.skip_bad_rows)
        if chosen := [record for record in records if record.split == split]:
            found.append(_of_split(name, entry, split, records.of(chosen), grid))
    labels = {record.label for bench in found for record in bench.records}
    if "harmful" not in labels:
        raise UsageError(
            f"choose-on: no benchmark has a harmful record of split {split}.",
            "Give some, or leave choose-on out: then the figures choose that are reported.",
        )
    return tuple(found)


def _of_split(name: str, entry: Benchmark, split: Split, found: Records, grid: Grid) -> Bench:
    if entry.limit:
        found = found.of(subset(found, entry.limit))
    revision = describe_data(found).sha256
    digests = frozenset(record.digest() for record in found)
    return Bench(name, entry, split, found, revision, entry.max_new_tokens or grid.max_new_tokens, digests)


def _cell(arm: Arm, bench: Bench, folder: Path) -> Cell:
    identity = digest_of(
        {
            "model": arm.subject.digest,
            "arm": arm.identity,
            "records": [bench.revision, *(record.id for record in bench.records)],  # and in their order
            "max_new_tokens": bench.max_new_tokens,
            "version": __version__,
        }
    )
    name = f"{bench.called}-{identity[:_DIGITS]}.json"
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
    return Arm(subject, shown, name, seed, defence, tuple(adapters), tuple(fits), identity)


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
    settings = dict(part.settings)
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
            "refusal": part.refusal,
            "data": data,
            "under": [*identities] if under else [],
            "version": __version__,
            **({"budget": part.budget.values()} if part.budget.given else {}),
        }
    )
    path = folder / ADAPTERS / subject.name / f"{method.name}-{identity[:_DIGITS]}"
    return Fit(subject, method, part, settings, under, path, data), identity
