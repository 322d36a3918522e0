"""Commands killed at random times, and disks that are full: what is left, and what the next run makes of it.

    python bench/kills.py -o OUT [--what fit sweep export eval index] [--rounds 350] [--points 50]

The model is a LLaVA of two layers with random weights (`bench/zoo`), the records are a few of the reference VLM's: each
command goes through all of its stages in about a second. It runs in a process that is forked from one in which all
libraries are loaded, so that it is killed in its work and not in its imports; it has handlers of its own, and leads a
group of processes.

Kills: of every four rounds, two find an output (made with other settings) and replace it with ``--overwrite``. Two
are killed at a share of the processor time that the command takes when it is left alone, the shares spread evenly
over it; two as the command touches a file near its output for the N-th time, N spread evenly over all times in one
round of three, and over the last sixteen, where the output appears, in the others. The signal is SIGKILL, SIGTERM or
SIGHUP in the first 200 rounds, and SIGKILL in those after them, to the process or to its group. The output must then
be absent or whole (the former one or the new one, by SHA-256), and no process of the group may live. The same command
runs again: its output must be, byte for byte, that of a run that was left alone, and beside it nothing else may lie
(an orphan).

Full disks: the output lies on a file system in memory (``unshare -rm``, ``mount -t tmpfs``) of sizes up to a third more
than the output takes. The command must end well or with exit code 8, whole or without output; then there is room, and
the same command must give the same bytes and leave no orphan.

Results are kept in OUT/kills.json and OUT/kills.md; what is there is not run again. Linux only.
"""

from __future__ import annotations

import os
import random
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
from safetykit.bench._kills.commands import COMMANDS, Words, load_libraries, make_inputs, words_of
from safetykit.bench._kills.victims import Moment, finished, forked, killed, note_of, waited
from safetykit.bench.processes import copied, digest
from safetykit.bench.skeleton import arguments, one_thread, read_results, run, say, write_results, write_table
from safetykit.toolkit.commands.exit_codes import of_signal

SIGNALS = ("SIGKILL", "SIGTERM", "SIGHUP")
LAST = 16  # touches of files, at the end of a command, that most rounds by touches are spread over
_SPREAD = 200  # rounds over which moments are spread evenly
_RESUMABLE = (".fitting", ".sweep.jsonl", ".partial.jsonl", ".building")  # what an interrupted command goes on from
_INSIDE = "SAFETYKIT_BENCH_MOUNTS"  # set in the process that may mount


def made(words: Sequence[str], out: Path, log: Path) -> tuple[str, float, float]:
    """The digest of what a command writes, the seconds it took, and those of processor.

    Raises:
        UsageError: it failed.
    """
    remove(out)
    began = time.monotonic()
    code, taken = waited(forked([*words, "-o", str(out)], log))
    if code:
        raise UsageError(f"{' '.join(words)} ended with {code}: {log.read_text()[-800:]}", "Mend that first.")
    return content(out), time.monotonic() - began, taken


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


def moment_of(number: int, order: random.Random, seconds: float, touches: int) -> Moment:
    """When which signal comes in a round.

    Args:
        number: of the round; neighbours of the same kind are given neighbouring parts of a span.
        seconds: of processor, that the command takes.
        touches: how often it touches files near its output.
    """
    name, group, place = order.choice(SIGNALS), order.random() < 0.5, number // 4
    sent = signal.Signals[name if number < _SPREAD else "SIGKILL"]
    kinds = _SPREAD // 4
    share = (place % kinds * 19 % kinds + order.random()) / kinds  # 19: early rounds, too, lie all over the span
    if number // 2 % 2 == 0:
        return Moment(sent, group, seconds=share * seconds)
    first = 0 if place % 3 == 0 else max(0, touches - LAST)
    return Moment(sent, group, event=first + 1 + int(share * (touches - first)))


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
        out = self.folder / "alone" / "out"
        out.parent.mkdir(exist_ok=True)
        words = words_of(what, self.folder, self.data)
        first, _, once = made(words, out, self.log)
        again, seconds, twice = made(words, out, self.log)
        size = sum(path.stat().st_size for path in out.rglob("*")) if out.is_dir() else out.stat().st_size
        other = self.folder / f"former-{what}"
        former, _, _ = made(words_of(what, self.folder, self.data, other=True), other, self.log)
        touched = {}
        for replaces in (False, True):
            place, command = self._placed(what, replaces)
            note = self.folder / "note"
            if code := finished(command, self.log, near=place.parent, note=note):
                raise UsageError(f"{' '.join(command)} ended with {code}.", "Mend that first.")
            touched[str(replaces)] = note_of(note)["touched"]
        return {
            "digest": first,
            "twice": first == again,
            "former": former,
            "seconds": seconds,
            "processor": min(once, twice),
            "bytes": size,
            "touched": touched,
        }

    def _placed(self, what: str, replaces: bool) -> tuple[Path, Words]:
        """Where a command writes in a folder that holds nothing but, perhaps, the former output; and the command."""
        place = self.folder / "killed"
        remove(place)
        place.mkdir()
        out = place / "out"
        if replaces:
            former = self.folder / f"former-{what}"
            shutil.copytree(former, out) if former.is_dir() else shutil.copyfile(former, out)
        words = words_of(what, self.folder, self.data)
        return out, [*words, "-o", str(out), *(["--overwrite"] if replaces else [])]

    def killed(self, what: str, number: int) -> dict[str, Any]:
        """One round."""
        order, alone, replaces = random.Random(f"{what} {number}"), self.alone(what), number % 2 == 1
        out, command = self._placed(what, replaces)
        moment = moment_of(number, order, alone["processor"], alone["touched"][str(replaces)])
        ended = killed(command, self.log, out.parent, moment)
        said = self.log.read_text(errors="replace")
        left, state = lying_beside(out), state_of(out, alone["former"], alone["digest"])
        again = finished(command, self.log)
        taken = again == 2 and state == "new" and not replaces  # it had been ready
        said += self.log.read_text(errors="replace")
        return {
            "signal": moment.sent.name,
            "group": moment.group,
            "replaces": replaces,
            "at": round(moment.seconds, 3) if moment.event is None else f"touch {moment.event}",
            **ended,
            "coded": ended["code"] in (0, -moment.sent, of_signal(moment.sent)),
            "typed": "Traceback" not in said and "bug in safetykit" not in said,
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
        "| killed | kills (KILL, TERM, HUP) | of these while files are exchanged | output partial | former output lost "
        "| other exit codes | untyped | processes left | orphans after TERM, HUP | orphans after the next run "
        "| the next run's bytes differ |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for what, rounds in results.get("kills", {}).items():
        by = Counter(one["signal"] for one in rounds)
        counts = ", ".join(str(by[name]) for name in SIGNALS)
        cells = [
            sum(isinstance(one["at"], str) for one in rounds),
            sum(one["state"] == "partial" for one in rounds),
            sum(one["replaces"] and one["state"] == "absent" for one in rounds),
            sum(not one["coded"] for one in rounds),
            sum(not one["typed"] for one in rounds),
            sum(bool(one["processes"]) for one in rounds),
            sum(bool(one["left"]) and one["signal"] != "SIGKILL" and one["code"] > 0 for one in rounds),
            sum(bool(one["orphans"]) for one in rounds),
            sum(not one["same"] for one in rounds),
        ]
        lines.append(f"| {what} | {len(rounds)} ({counts}) | {' | '.join(map(str, cells))} |")
    for what, rounds in results.get("kills", {}).items():
        ready, resumed = (sum(check(one) for one in rounds) for check in (_was_ready, lambda one: bool(one["kept"])))
        slowest = max((one["ended_in"] or 0.0 for one in rounds if one["signal"] != "SIGKILL"), default=0.0)
        alone = results["alone"][what]
        twice = "the same bytes twice" if alone["twice"] else "OTHER BYTES the second time"
        lines += [
            "",
            f"`{what}`: {alone['processor']:.1f} s of processor when left alone, {twice}; in {ready} of {len(rounds)} "
            f"rounds the new output was there already, in {resumed} the next run could go on from what was kept; after "
            f"SIGTERM and SIGHUP it ended in {slowest:.1f} s at most.",
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


def _was_ready(one: dict[str, Any]) -> bool:
    return bool(one["state"] == "new")


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, quick={"what": ["fit"], "rounds": 2, "points": 0, "limit": 8})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--what", nargs="*", choices=COMMANDS, default=list(COMMANDS), help="commands")
    parser.add_argument("--rounds", type=int, default=350, help="kills of each command")
    parser.add_argument("--points", type=int, default=10, help="sizes of a disk that is full, for each command")
    parser.add_argument("--limit", type=int, default=8, help="records of each split")
    options = parser.parse_args(given)
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if options.points:
        able_to_mount()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not live in a child
    one_thread()
    data = copied(folder, "reference", 1, options.limit)
    make_inputs(folder, data, folder / "log.txt")
    load_libraries(folder, data, folder / "log.txt", tuple(options.what))
    path = folder / "kills.json"
    results = read_results(path)
    lab = Lab(folder, data, results)
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
