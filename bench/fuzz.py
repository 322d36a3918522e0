"""Loads of changed artifacts of every kind, each sealed again so that the checksums are right.

    python bench/fuzz.py -o FOLDER [--mutants 10000] [--kind adapter …] [--seed 0]

One small artifact of each kind is made (adapter, index, export, checkpoint). Of each mutant one file differs, sometimes
two: a value in a JSON tree or in the header of a safetensors file, or bytes. Its manifest then names the new digests
and carries its own, as somebody would who attacks. What is loaded is also used a little. Counted are loads that end in
an error that is none of safetykit's (untyped), that take longer than five seconds of processor, the most memory that a
process takes, processes that end, and events that no load may cause: programs, connections, unpickling, code that a
library did not bring. Loads run in processes of their own, some hundreds in each, which are forked from one that has
imported everything; one that does not come back within a minute of processor, or ten of the clock, is ended.

The mutant N of a seed is always the same. Failures are kept in FOLDER/failures, by kind, with the files that differ.
What is counted in FOLDER/fuzz.json is not loaded again: an interrupted run goes on from there.
"""

from __future__ import annotations

import logging
import multiprocessing
import random
import resource
import shutil
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from safetykit.adapters.errors import SafetykitError
from safetykit.bench._fuzz.artifacts import KINDS, make_checkpoint, remember_drawings, seal
from safetykit.bench._fuzz.guard import Guard
from safetykit.bench._fuzz.mutants import mutate
from safetykit.bench.skeleton import arguments, read_results, run, say, write_results, write_table

EACH = 250  # mutants a process
LATE, KILLED = 5.0, 60.0  # seconds of processor
STARTED, SILENT = 600.0, 600.0  # seconds of the clock, which on a busy machine are many
COUNTED = ("accepted", "refused", "untyped", "late", "ended", "events")
_OWN_PROGRAMS = ("template_worker.py",)  # which renders chat templates apart


def main(given: Sequence[str] | None = None) -> int:
    """Load all mutants and write the table; 1 if a load failed otherwise than it should."""
    parser = arguments(__doc__, quick={"mutants": 20})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for artifacts, results and failures")
    parser.add_argument("--mutants", type=int, default=10_000, help="of each kind")
    parser.add_argument("--kind", choices=KINDS, action="append", help="all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the changes")
    options = parser.parse_args(given)
    results = read_results(options.out / "fuzz.json")
    for name in options.kind or KINDS:
        for figures in fuzz(name, options.out, options.mutants, options.seed, results.get(name)):
            results[name] = figures
            write_results(options.out / "fuzz.json", results)
    write_table(options.out / "fuzz.md", table(results))
    return int(any(row["untyped"] or row["late"] or row["ended"] or row["events"] for row in results.values()))


def fuzz(
    name: str, out: Path, count: int, seed: int, known: Mapping[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """The figures of a kind, again and again as they grow.

    Args:
        known: those of an interrupted run, which count where the seed is the same.
    """
    pristine = out / "artifacts" / name
    if not pristine.exists():
        model = out / "artifacts" / "model"
        if not model.exists():
            make_checkpoint(model, model)
        KINDS[name].make(pristine, model)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__ if __name__ != "__main__" else "safetykit.bench.fuzz"])
    known = known if known and known["seed"] == seed else {}
    total = Counter({key: known.get(key, 0) for key in COUNTED})
    peak, slowest, start = known.get("peak_mb", 0.0), known.get("slowest", 0.0), known.get("mutants", 0)
    while start < count:
        stop = min(start + EACH, count)
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_loads, args=(name, pristine, out, start, stop, seed, sender))
        process.start()
        sender.close()
        if not receiver.poll(STARTED):
            process.kill()
            raise SystemExit(f"{name}: a process does not start within {STARTED:.0f} s")
        receiver.recv()
        at = start
        while True:
            try:
                if not answers(receiver, psutil.Process(process.pid)):
                    process.kill()
                one = receiver.recv()
            except EOFError:
                break
            at = one.pop("at") + 1
            peak, slowest = max(peak, one.pop("peak_mb")), max(slowest, one.pop("seconds"))
            total.update({key: int(value) for key, value in one.items()})
        process.join()
        if at < stop:  # it ended, or was ended, within a load
            keep(out, name, pristine, at, seed, f"the process ended with {process.exitcode}")
            total["ended"] += 1
            at += 1
        start = at
        say(f"{name}: {start:,} of {count:,}, {dict(total)}, {peak:.0f} MiB, {slowest:.1f} s")
        yield {"mutants": start, "seed": seed, **total, "peak_mb": peak, "slowest": slowest}


def answers(receiver: Any, process: psutil.Process) -> bool:
    """Wait until a process tells of its next load; whether it does, and no load takes it too long."""
    began = _spent(process)
    for _ in range(int(SILENT)):
        if receiver.poll(1.0):
            return True
        if _spent(process) - began > KILLED:
            break
    return False


def _spent(process: psutil.Process) -> float:
    """Seconds of processor, its children's among them."""
    try:
        return sum(process.cpu_times()[:4])
    except psutil.Error:  # it has ended, which its pipe tells
        return 0.0


@cache
def contents(pristine: Path) -> dict[str, bytes]:
    """The files of an artifact, by name."""
    found = sorted(path for path in pristine.rglob("*") if path.is_file())
    return {path.relative_to(pristine).as_posix(): path.read_bytes() for path in found}


def changes(name: str, pristine: Path, at: int, seed: int) -> dict[str, bytes]:
    """The files of a mutant that differ from the artifact's, the manifest sealed again among them."""
    return drawn_changes(name, pristine, random.Random(f"{seed} {name} {at}"))


def drawn_changes(name: str, pristine: Path, drawn: random.Random) -> dict[str, bytes]:
    """The same of a mutant that ``drawn`` decides on."""
    kind, whole = KINDS[name], contents(pristine)
    small = [one for one, data in whole.items() if len(data) < 2**20]
    chosen = {drawn.choice(small) for _ in range(drawn.choice((1, 1, 1, 2)))}
    made = {one: mutate(one, whole[one], drawn) for one in sorted(chosen)}
    if kind.manifest:
        manifest = made.get(kind.manifest, whole[kind.manifest])
        made[kind.manifest] = seal(manifest, {one: data for one, data in made.items() if one != kind.manifest})
    return made


def keep(out: Path, name: str, pristine: Path, at: int, seed: int, why: str) -> None:
    """Write what differs in a mutant that failed, and how it did."""
    place = out / "failures" / name / str(at)
    for one, data in changes(name, pristine, at, seed).items():
        (place / one).parent.mkdir(parents=True, exist_ok=True)
        (place / one).write_bytes(data)
    (place / "why.txt").write_text(why)


def _loads(name: str, pristine: Path, out: Path, start: int, stop: int, seed: int, sender: Any) -> None:
    """Load mutants from ``start`` on and tell of each how it went; in a process of its own."""
    warnings.simplefilter("ignore")
    logging.disable()
    sys.stdout = sys.stderr = open("/dev/null", "w")  # noqa: SIM115  until the process ends
    remember_drawings()
    work, kind = out / "work" / name, KINDS[name]
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(pristine, work)
    for _ in range(2):  # what is imported and made once belongs to no mutant
        kind.load(work)
    sender.send(None)
    guard = Guard(work.resolve(), _OWN_PROGRAMS)
    for at in range(start, stop):
        made = changes(name, pristine, at, seed)
        for one, data in made.items():
            (work / one).write_bytes(data)
        found = {"accepted": False, "refused": False, "untyped": False}
        guard.found.clear()
        why, began, guard.watching = "", time.process_time(), True
        try:
            kind.load(work)
            found["accepted"] = True
        except SafetykitError:
            found["refused"] = True
        except BaseException:
            found["untyped"], why = True, traceback.format_exc()
        guard.watching = False
        seconds = time.process_time() - began
        found |= {"late": seconds > LATE, "events": bool(guard.found)}
        if why or seconds > LATE or guard.found:
            keep(out, name, pristine, at, seed, "\n".join([why, *guard.found, f"{seconds:.1f} s"]))
        for one in made:
            (work / one).write_bytes(contents(pristine)[one])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sender.send({"at": at, **found, "seconds": seconds, "peak_mb": peak})


def table(results: Mapping[str, Any]) -> str:
    """One row a kind."""
    head = (
        "kind",
        "mutants",
        "refused",
        "accepted",
        "untyped",
        "over 5 s of processor",
        "processes ended",
        "forbidden",
        "memory",
    )
    rows = [head, ("---", *["---:"] * (len(head) - 1))]
    for name, row in results.items():
        counts = (f"{row[key]:,}" for key in ("mutants", "refused", "accepted", "untyped", "late", "ended", "events"))
        rows.append((name, *counts, f"{row['peak_mb']:.0f} MiB"))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


if __name__ == "__main__":
    run(main)
