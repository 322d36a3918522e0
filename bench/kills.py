"""Commands killed at random times, and disks that are full: what is left, and what the next run makes of it.

    python bench/kills.py -o OUT [--what fit sweep export eval index] [--rounds 200] [--points 10]

Kills: each command runs on the small reference VLM, in a process that is forked from one in which all libraries are
loaded, so that it is killed in its work and not in its imports. In every other round its output is there already (made
with other settings) and is replaced with ``--overwrite``. At a random time the process gets SIGKILL, SIGTERM or SIGHUP.
The output must then be absent or whole (the former one or the new one, by SHA-256). The same command runs again: its
output must be, byte for byte, that of a run that was left alone, and beside it nothing else may lie (an orphan).

Full disks: the output lies on a file system in memory (``unshare -rm``, ``mount -t tmpfs``) of sizes up to a third more
than the output takes. The command must end well or with exit code 8, whole or without output; then there is room, and
the same command must give the same bytes and leave no orphan.

Results are kept in OUT/kills.json and OUT/kills.md; what is there is not run again. Linux only.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetykit.adapters.artifact.files import sha256_file
from safetykit.adapters.artifact.held import remove
from safetykit.adapters.errors import OutputFailed, UsageError
from safetykit.bench.processes import MODEL, copied, digest
from safetykit.bench.skeleton import arguments, one_thread, read_results, run, say, write_results, write_table
from safetykit.cli import main as command_line
from safetykit.toolkit.commands.exit_codes import of_signal

COMMANDS = ("fit", "sweep", "export", "eval", "index")
SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP")
_RESUMABLE = (".fitting", ".sweep.jsonl", ".partial.jsonl", ".building")  # what an interrupted command goes on from
_WAIT = 600.0  # seconds after which a command counts as hanging
_INSIDE = "SAFETYKIT_BENCH_MOUNTS"  # set in the process that may mount

Words = list[str]


def words_of(what: str, folder: Path, data: Path, *, other: bool = False) -> Words:
    """A command without its output; ``other``: with settings that give another output."""
    rows, adapter, base = (shlex.quote(str(path)) for path in (data, folder / "guard", folder / "base"))
    rank = 1 if other else 2
    guard = f"fit vlm-guard {MODEL} --data {rows}"
    found = {
        "fit": f"{guard} --layers {5 if other else 4}",
        "sweep": f"{guard} --layers 4 --gate paper --direction svd --rank {rank} --sweep",
        "export": f"export {MODEL} --adapter {adapter} --base-onnx {base} --parity-rows {rank}",
        "eval": f"eval {MODEL} --data {rows} --batch-size 4 --max-new-tokens {rank + 2}",
        "index": f"index build reference --model {MODEL} --keys {'float16' if other else 'float32'}",
    }
    return [*shlex.split(found[what]), "--quiet"]


def load_libraries() -> None:
    """What the commands import, once."""
    from safetykit import VLM
    from safetykit.export.commands import eval as _eval  # noqa: F401
    from safetykit.export.commands import export as _export  # noqa: F401
    from safetykit.export.commands import fit as _fit  # noqa: F401
    from safetykit.toolkit.commands import index as _index  # noqa: F401
    from safetykit.toolkit.data.sources import model_path

    VLM.from_pretrained(model_path(MODEL))


def forked(words: Sequence[str], log: Path) -> int:
    """Start a command in a child; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        there = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(there, 1)
        os.dup2(there, 2)
        command_line(list(words))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def waited(child: int) -> int:
    """How a child ended: its exit code, or the negative number of the signal."""
    until = time.monotonic() + _WAIT
    while True:
        number, status = os.waitpid(child, os.WNOHANG)
        if number:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


def finished(words: Sequence[str], log: Path) -> int:
    """The exit code of a command that is left alone."""
    return waited(forked(words, log))


def made(words: Sequence[str], out: Path, log: Path) -> tuple[str, float]:
    """The digest of what a command writes, and the seconds it took.

    Raises:
        UsageError: it failed.
    """
    remove(out)
    began = time.monotonic()
    if code := finished([*words, "-o", str(out)], log):
        raise UsageError(f"{' '.join(words)} ended with {code}: {log.read_text()[-800:]}", "Mend that first.")
    return content(out), time.monotonic() - began


def content(out: Path) -> str:
    """The digest of an output, whatever it is called."""
    return digest(out) if out.is_dir() else sha256_file(out)


def lying_beside(out: Path) -> list[str]:
    """What lies in the folder of an output, without the output."""
    return sorted(path.name for path in out.parent.iterdir() if path != out)


def state_of(out: Path, former: str, expected: str) -> str:
    """What an output is, by its digest."""
    if not out.exists():
        return "absent"
    return {former: "former", expected: "new"}.get(content(out), "partial")


class Lab:
    """The commands' inputs, and what they write when they are left alone."""

    def __init__(self, folder: Path, data: Path, results: dict[str, Any]) -> None:
        self.folder, self.data, self.results = folder, data, results
        self.log = folder / "log.txt"

    def alone(self, what: str) -> dict[str, Any]:
        """Digests of the output and of another one, and seconds; the other stays, to be replaced."""
        kept = self.results.setdefault("alone", {})
        if what not in kept or not (self.folder / f"former-{what}").exists():
            kept[what] = self._alone(what)
        found: dict[str, Any] = kept[what]
        return found

    def _alone(self, what: str) -> dict[str, Any]:
        if what == "export":  # which starts from graphs without an adapter, so that it takes seconds
            made(words_of("fit", self.folder, self.data), self.folder / "guard", self.log)
            made(["export", MODEL, "--quiet"], self.folder / "base", self.log)
        out = self.folder / "alone" / "out"
        out.parent.mkdir(exist_ok=True)
        words = words_of(what, self.folder, self.data)
        first, seconds = made(words, out, self.log)
        again, _ = made(words, out, self.log)
        size = sum(path.stat().st_size for path in out.rglob("*")) if out.is_dir() else out.stat().st_size
        other = self.folder / f"former-{what}"
        former, _ = made(words_of(what, self.folder, self.data, other=True), other, self.log)
        return {"digest": first, "twice": first == again, "former": former, "seconds": seconds, "bytes": size}

    def killed(self, what: str, number: int) -> dict[str, Any]:
        """One round."""
        order, alone = random.Random(f"{what} {number}"), self.alone(what)
        place = self.folder / "killed"
        remove(place)
        place.mkdir()
        out, words, replaces = place / "out", words_of(what, self.folder, self.data), number % 2 == 1
        if replaces:
            former = self.folder / f"former-{what}"
            shutil.copytree(former, out) if former.is_dir() else shutil.copyfile(former, out)
        command = [*words, "-o", str(out), *(["--overwrite"] if replaces else [])]
        sent = signal.Signals[order.choice(SIGNALS)]
        delay = order.uniform(0.0, 1.05) * alone["seconds"]
        child = forked(command, self.log)
        time.sleep(delay)
        try:
            os.kill(child, sent)
        finally:
            began = time.monotonic()
            code = waited(child)
        took, left, state = time.monotonic() - began, lying_beside(out), state_of(out, alone["former"], alone["digest"])
        again = finished(command, self.log)
        taken = again == 2 and state == "new" and not replaces  # it had been ready
        return {
            "signal": sent.name,
            "replaces": replaces,
            "after": round(delay, 3),
            "ended_in": round(took, 3),
            "code": code,
            "coded": code in (0, -sent, of_signal(sent)),
            "state": state,
            "whole": state == "new" or state == ("former" if replaces else "absent"),
            "left": [name for name in left if not name.endswith(_RESUMABLE)],
            "kept": [name for name in left if name.endswith(_RESUMABLE)],
            "again": again,
            "same": (again == 0 or taken) and content(out) == alone["digest"],
            "orphans": lying_beside(out),
        }

    def full(self, what: str, number: int, points: int) -> dict[str, Any]:
        """One size of a disk."""
        alone, disk = self.alone(what), self.folder / "disk"
        size = max(4096, round(alone["bytes"] * 1.33 * (number + 1) / points))
        disk.mkdir(exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={size}", "none", str(disk))
        try:
            out = disk / "out"
            command = [*words_of(what, self.folder, self.data), "-o", str(out)]
            code = finished(command, self.log)
            said = self.log.read_text()
            state = state_of(out, "", alone["digest"])
            left = [name for name in lying_beside(out) if not name.endswith(_RESUMABLE)]
            _mount("-o", "remount,size=1g", str(disk))
            again = 0 if state == "new" else finished(command, self.log)
            return {
                "bytes": size,
                "code": code,
                "typed": code in (0, OutputFailed.exit_code) and "Traceback" not in said,
                "state": state,
                "left": left,
                "same": again == 0 and content(out) == alone["digest"],
                "orphans": lying_beside(out),
            }
        finally:
            subprocess.run(["umount", str(disk)], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def able_to_mount() -> None:
    """Go on in a process that may mount file systems of its own, which nobody else sees.

    Raises:
        UsageError: this system does not let us.
    """
    if os.environ.get(_INSIDE):
        return
    inside = ["unshare", "-rm"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        raise UsageError("This system lets nobody mount in a namespace (unshare -rm).", "Pass --points 0.")
    os.execvpe(inside[0], [*inside, sys.executable, *sys.argv], {**os.environ, _INSIDE: "1"})


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "| killed | kills (KILL, TERM, HUP) | output partial | former output lost | other exit codes "
        "| orphans after TERM, HUP | orphans after the next run | the next run's bytes differ |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for what, rounds in results.get("kills", {}).items():
        by = Counter(one["signal"] for one in rounds)
        counts = ", ".join(str(by[name]) for name in SIGNALS)
        cells = [
            sum(one["state"] == "partial" for one in rounds),
            sum(one["replaces"] and one["state"] == "absent" for one in rounds),
            sum(not one["coded"] for one in rounds),
            sum(bool(one["left"]) and one["signal"] != "SIGKILL" and one["code"] > 0 for one in rounds),
            sum(bool(one["orphans"]) for one in rounds),
            sum(not one["same"] for one in rounds),
        ]
        lines.append(f"| {what} | {len(rounds)} ({counts}) | {' | '.join(map(str, cells))} |")
    for what, rounds in results.get("kills", {}).items():
        ready = sum(one["state"] == "new" for one in rounds)
        slowest = max((one["ended_in"] for one in rounds if one["signal"] != "SIGKILL"), default=0.0)
        alone = results["alone"][what]
        twice = "the same bytes twice" if alone["twice"] else "OTHER BYTES the second time"
        lines += [
            "",
            f"`{what}`: {alone['seconds']:.1f} s when left alone, {twice}; in {ready} of {len(rounds)} rounds it was "
            f"done before the signal; after SIGTERM and SIGHUP it ended in {slowest:.1f} s at most.",
        ]
    if full := results.get("full"):
        lines += [
            "",
            "| full disk | sizes | ended with 8 | other failures | output partial "
            "| orphans before and after the next run | the next run's bytes differ |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for what, points in full.items():
            cells = [
                len(points),
                sum(one["code"] == OutputFailed.exit_code for one in points),
                sum(not one["typed"] for one in points),
                sum(one["state"] == "partial" for one in points),
                sum(bool(one["left"]) or bool(one["orphans"]) for one in points),
                sum(not one["same"] for one in points),
            ]
            lines.append(f"| {what} | {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, quick={"what": ["fit"], "rounds": 2, "points": 0, "limit": 8})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--what", nargs="*", choices=COMMANDS, default=list(COMMANDS), help="commands")
    parser.add_argument("--rounds", type=int, default=200, help="kills of each command")
    parser.add_argument("--points", type=int, default=10, help="sizes of a disk that is full, for each command")
    parser.add_argument("--limit", type=int, default=24, help="records of each split")
    options = parser.parse_args(given)
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.points:
        able_to_mount()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not live in a child
    one_thread()
    load_libraries()
    path = folder / "kills.json"
    results = read_results(path)
    lab = Lab(folder, copied(folder, "reference", 1, options.limit), results)
    for what in options.what:
        lab.alone(what)
    parts: list[tuple[str, int, Callable[[str, int], dict[str, Any]]]] = [
        ("kills", options.rounds, lab.killed),
        ("full", options.points, lambda what, number: lab.full(what, number, options.points)),
    ]
    for name, count, once in parts:
        for number in range(count):  # in turn, so that an interrupted bench has some of all
            for what in options.what:
                rounds = results.setdefault(name, {}).setdefault(what, [])
                if len(rounds) <= number:
                    rounds.append(once(what, number))
                    say(f"{name} {what} {number}: {rounds[-1]}")
                    write_results(path, results)
    write_table(folder / "kills.md", table(results))


if __name__ == "__main__":
    run(main)  # type: ignore[arg-type]
