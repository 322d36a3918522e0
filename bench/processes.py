"""Several processes: the same bytes as one, what two are worth, and what is left when one is killed.

    python bench/processes.py -o OUT [--method vlm-guard] [--processes 1 2 4] [--threads 1 2] [--kills 20] [--rounds 5]

Identity: each method is fitted with its defaults on the reference records, and an export of VLM-Guard's adapter
answers the test records, by every number of processes and PyTorch threads (``OMP_NUM_THREADS``); files are compared by
SHA-256. One more run has two launchers that stand for two machines and meet over two loopback addresses. Time: a fit of
VLM-Guard on ``--copies`` of the records by one process (twice, the second as A/A control), by two, and by two that know
nothing of each other and each do all of it, whose wall time says what this machine's second CPU is worth; one thread
each, interleaved. Seconds are those in which records ran, as the command counts them (``throughput``), and of the whole
command with its start. Kills: one of two processes of a fit or an evaluation is killed (SIGKILL) at a random time; the
others must end, nothing half-written may be left, and the same command by another number of processes must write the
same bytes.

Results are kept in OUT/processes.json and OUT/processes.md; what is there is not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from safetykit.bench.skeleton import arguments, cleared, read_results, run, say, write_results, write_table
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.data.writing import renamed

METHODS = ("vlm-guard", "care", "one-pass", "sasa")
EXPORT = "export"
MODEL = "reference:mild"
Job = subprocess.Popen[str]
_WAIT = 900  # seconds after which a run counts as hanging


def command(processes: int, words: Sequence[Any], launcher: Sequence[Any] = ()) -> list[str]:
    """How ``safetykit`` with these words is started."""
    alone = [sys.executable, "-m", "safetykit"]
    shared = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        processes,
        *launcher,
        "-m",
        "safetykit",
    ]
    return [str(word) for word in [*(alone if processes == 1 and not launcher else shared), *words]]


def start(
    processes: int, words: Sequence[Any], threads: int = 1, launcher: Sequence[Any] = ()
) -> subprocess.Popen[str]:
    """Start it, without waiting."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command(processes, words, launcher), env=environment, **pipes)


def ended(job: Job) -> str:
    """What it printed; it must have succeeded."""
    out, err = job.communicate(timeout=_WAIT)
    if job.returncode:
        raise RuntimeError(f"{job.args} ended with {job.returncode}:\n{err[-4000:]}")
    return out


def digest(path: Path) -> str:
    """Of a file, or of all files in a folder."""
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            found.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def words_of(what: str, folder: Path, data: str) -> list[Any]:
    """The fit of a method, or the evaluation of the export."""
    if what == EXPORT:
        return ["eval", folder / "export", "--data", data, "--json", "-q"]
    return ["fit", what, MODEL, "--data", data, "--json", "-q"]


def make_export(folder: Path, data: str) -> None:
    """What is evaluated."""
    if not (folder / "export").is_dir():
        ended(start(1, ["fit", "vlm-guard", MODEL, "--data", data, "-o", folder / "guard", "--overwrite", "-q"]))
        ended(start(1, ["export", MODEL, "--adapter", folder / "guard", "-o", folder / "export", "-q"]))


def written(folder: Path, processes: int, words: Sequence[Any], threads: int = 1) -> str:
    """The digest of what a command writes."""
    out = cleared(folder / "out")
    ended(start(processes, [*words, "-o", out], threads))
    return digest(out)


def on_two_hosts(folder: Path, words: Sequence[Any]) -> str:
    """The digest of what two launchers write that meet over 127.0.0.1 and 127.0.0.2."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, jobs = cleared(folder / "out"), []
    for host in range(2):
        meeting = ["--nnodes", 2, "--node-rank", host, "--rdzv-backend", "c10d", "--rdzv-id", port]
        meeting += ["--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", f"127.0.0.{host + 1}"]
        jobs.append(start(1, [*words, "-o", out], launcher=meeting))
    for job in jobs:
        ended(job)
    return digest(out)


def copied(folder: Path, data: str, copies: int, limit: int | None = None) -> Path:
    """At most ``limit`` records of each split, several times over under other names, in a folder of their own."""
    target = folder / f"records-{limit or 'all'}-{copies}"
    target.mkdir(parents=True, exist_ok=True)
    lines, found = [], load_records(data_path(data))
    splits = [[record for record in found if record.split == split] for split in ("fit", "calibration", "test")]
    for record in [record for split in splits for record in subset(split, limit or len(split))]:
        value = renamed(record, [str(record.folder.resolve() / name) for name in record.image_names])
        for copy in range(copies):
            names = {name: f"{copy}:{value[name]}" for name in ("id", "pair") if name in value}
            lines.append(json.dumps({**value, **names}))
    (target / "records.jsonl").write_text("\n".join(lines) + "\n")
    return target


def seconds_of(job: Job, began: float) -> dict[str, float]:
    """Seconds in which records ran, and of the whole command."""
    counted = json.loads(ended(job))["throughput"]["seconds"]
    return {"records": counted, "command": time.monotonic() - began}


def timed(folder: Path, data: Path, order: random.Random) -> dict[str, dict[str, float]]:
    """One round of all arms in random order."""
    words = words_of("vlm-guard", folder, str(data))
    arms: dict[str, list[int]] = {"one": [1], "control": [1], "two": [2], "independent": [1, 1]}
    found = {}
    for name in order.sample(sorted(arms), len(arms)):
        outs = [cleared(folder / f"timed-{at}") for at in range(len(arms[name]))]
        began = time.monotonic()
        jobs = [start(count, [*words, "-o", out]) for count, out in zip(arms[name], outs, strict=True)]
        each = [seconds_of(job, began) for job in jobs]
        found[name] = {unit: max(one[unit] for one in each) for unit in each[0]}
    return found


def ranks_of(job: Job) -> dict[int, int]:
    """The processes that a launcher has started, by rank."""
    found = {}
    for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
        words = dict(word.partition("=")[::2] for word in Path(f"/proc/{pid}/environ").read_text().split("\0"))
        if "RANK" in words:
            found[int(words["RANK"])] = int(pid)
    return found


def killed(folder: Path, what: str, data: str, expected: str, order: random.Random, lasts: float) -> dict[str, Any]:
    """Kill one of two processes at a random time of a command that ``lasts`` so many seconds; then run it again."""
    words, victim = words_of(what, folder, data), order.randrange(2)
    while True:
        out = cleared(folder / "killed")
        delay, began = order.uniform(0.1, 0.95) * lasts, time.monotonic()
        job = start(2, [*words, "-o", out])
        ranks: dict[int, int] = {}
        while job.poll() is None and (len(ranks) < 2 or time.monotonic() - began < delay):
            ranks = ranks or ranks_of(job)
            ranks = ranks if len(ranks) == 2 else {}
            time.sleep(0.01)
        if job.poll() is None:
            break
        lasts *= 0.9  # it was over before
        job.communicate()
    os.kill(ranks[victim], signal.SIGKILL)
    at = time.monotonic()
    _, err = job.communicate(timeout=_WAIT)
    after, again = time.monotonic() - at, order.choice((1, 2, 3))
    gone = not any(Path(f"/proc/{pid}").exists() for pid in ranks.values())
    kept = sorted(path.name for path in folder.glob(".killed*"))
    left = out.exists()
    ended(start(again, [*words, "-o", out]))
    return {
        "what": what,
        "rank": victim,
        "after_seconds": round(at - began, 1),
        "ended_in_seconds": round(after, 1),
        "exit_code": job.returncode,
        "said": sum(line.startswith("error:") for line in err.splitlines()),
        "others_ended": gone,
        "nothing_half_written": not left,
        "kept": kept,
        "resumed_by": again,
        "same": digest(out) == expected,
        "orphans": sorted(path.name for path in folder.glob(".killed*")),
    }


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| what is written | processes × threads | SHA-256, the first of 64 digits | the same |",
        "|---|---|---|---|",
    ]
    for what, found in results.get("identity", {}).items():
        digests = sorted(set(found.values()))
        same = "yes" if len(digests) == 1 else "NO"
        lines.append(f"| {what} | {', '.join(found)} | {' '.join(one[:12] for one in digests)} | {same} |")
    if rounds := results.get("times"):
        lines += ["", "| one thread each, over one process | records ran | whole command |", "|---|---:|---:|"]
        for name, said in (
            ("control", "one again"),
            ("two", "two"),
            ("independent", "two independent ones, half of both"),
        ):
            cells = []
            for unit in ("records", "command"):
                ratios = [one[name][unit] / one["one"][unit] * (0.5 if name == "independent" else 1) for one in rounds]
                cells.append(f"{median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
            lines.append(f"| {said} | {' | '.join(cells)} |")
        base = [one["one"] for one in rounds]
        base = [f"{median(one[unit] for one in base):.1f} s" for unit in ("records", "command")]
        lines.append(f"| one, in seconds | {' | '.join(base)} |")
    if kills := results.get("kills"):
        good = [one for one in kills if one["others_ended"] and one["nothing_half_written"] and one["same"]]
        slowest = max(one["ended_in_seconds"] for one in kills)
        lines += [
            "",
            f"{len(kills)} kills: in {len(good)} the others ended (in {slowest:.1f} s at most), nothing half-written "
            f"was left and the next run wrote the same bytes; {sum(bool(one['orphans']) for one in kills)} left "
            "something behind after that.",
        ]
    return "\n".join([*lines, ""])


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, quick={"method": ["vlm-guard"], "processes": [1, 2], "threads": [1]})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--data", default="reference", help="records")
    parser.add_argument(
        "--method", nargs="*", default=[*METHODS, EXPORT], help="methods, and export for the evaluation"
    )
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=0, help="of timing")
    parser.add_argument("--copies", type=int, default=8, help="how often the records are taken for timing")
    parser.add_argument("--limit", type=int, help="records of each split for identity and kills; all by default")
    options = parser.parse_args(given)
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "processes.json"
    results = read_results(path)
    data = str(copied(folder, options.data, 1, options.limit)) if options.limit else options.data
    if EXPORT in options.method:
        make_export(folder, data)
    for what in options.method:
        words, found = words_of(what, folder, data), results.setdefault("identity", {}).setdefault(what, {})
        for processes in options.processes:
            for threads in options.threads:
                name = f"{processes} × {threads}"
                if name not in found:
                    began = time.monotonic()
                    found[name] = written(folder, processes, words, threads)
                    lasts = results.setdefault("seconds", {}).setdefault(what, {})
                    lasts[name] = round(time.monotonic() - began, 1)
                    say(f"{what} {name}: {found[name][:12]}")
                    write_results(path, results)
        if "two hosts" not in found:
            found["two hosts"] = on_two_hosts(folder, words)
            write_results(path, results)
    if len(results.setdefault("times", [])) < options.rounds:
        many = copied(folder, options.data, options.copies)
        while len(results["times"]) < options.rounds:
            results["times"].append(timed(folder, many, random.Random(len(results["times"]))))
            say(str(results["times"][-1]))
            write_results(path, results)
    kills = results.setdefault("kills", [])
    while len(kills) < options.kills:
        order = random.Random(len(kills))
        what = options.method[len(kills) % len(options.method)]
        expected = next(iter(results["identity"][what].values()))
        lasts = max(results["seconds"][what].values())
        kills.append(killed(folder, what, data, expected, order, lasts))
        say(str(kills[-1]))
        write_results(path, results)
    write_table(folder / "processes.md", table(results))


if __name__ == "__main__":
    run(main)  # type: ignore[arg-type]
