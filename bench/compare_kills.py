"""`safetykit compare` killed at random moments of a small grid: what is left, and what the same command makes of it.

    python bench/compare_kills.py -o OUT [--points 50]

The model is a LLaVA of two layers with random weights (`bench/zoo`), the records are a few of the reference VLM's. The
grid fits one adapter, answers three cells and has two judges. Half of the rounds get SIGKILL, a quarter each SIGTERM
and SIGHUP: at a share of the processor time that the command takes when it is left alone, or as it touches a file near
its output for the N-th time, shares and N spread evenly. Then every file in the folder must be whole: an evaluation, an
adapter that loads, sealed results. The same command runs again, and the folder must be, byte for byte, that of a run
that was left alone.

Results are kept in OUT/compare_kills.json and OUT/compare_kills.md; what is there is not run again. Linux only.
"""

from __future__ import annotations

import os
import random
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetykit.adapters.artifact.held import remove
from safetykit.adapters.artifact.manifest import load_sealed
from safetykit.adapters.artifact.store import load_adapter
from safetykit.adapters.errors import SafetykitError, UsageError
from safetykit.bench._kills.commands import import_all, make_inputs
from safetykit.bench._kills.victims import Moment, finished, forked, killed, note_of, waited
from safetykit.bench.processes import copied
from safetykit.bench.skeleton import arguments, one_thread, read_results, run, say, write_results, write_table
from safetykit.toolkit.comparison.results import Results
from safetykit.toolkit.evaluation.evaluate import Evaluation

GRID = """\
models: {{tiny: {model}}}
defences:
  guard: {{fit: vlm-guard, data: {data}, settings: {{layers: 1}}}}
  shield: {{defence: system-prompt}}
benchmarks: {{few: {{data: {data}}}}}
judges: [expected, phrases]
max-new-tokens: 3
"""
SIGNALS = ("SIGKILL", "SIGTERM", "SIGKILL", "SIGHUP")


def written(out: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too, by its path."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def broken(out: Path) -> list[str]:
    """Files that are there and not whole; what is hidden is nobody's output."""
    found = []
    for path in out.rglob("*") if out.is_dir() else ():
        if any(part.startswith(".") for part in path.relative_to(out).parts):
            continue
        try:
            if path.name == "results.json":
                load_sealed(Results, path.read_bytes(), str(path))
            elif "cells" in path.parts and path.suffix == ".json":
                Evaluation.model_validate_json(path.read_bytes())
            elif path.name == "manifest.json":
                load_adapter(path.parent)
        except (SafetykitError, ValueError) as error:
            found.append(f"{path.relative_to(out)}: {error}")
    return found


def kept(out: Path) -> list[str]:
    """Adapters, cells and results that a killed command had finished."""
    names = ("manifest.json", "results.json")
    found = [path for path in out.rglob("*.json") if path.name in names or "cells" in path.parts]
    return sorted(str(path.relative_to(out)) for path in found if ".writing" not in str(path))


def moment_of(number: int, order: random.Random, seconds: float, touches: int, points: int) -> Moment:
    """When which signal comes in a round; those of a kind are spread evenly over the command."""
    sent = signal.Signals[SIGNALS[number // 2 % len(SIGNALS)]]
    share = (number // 2 + order.random()) / max(1, (points + 1) // 2)
    if number % 2 == 0:
        return Moment(sent, seconds=share * seconds)
    return Moment(sent, event=1 + int(share * touches))


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    rounds, alone = results["rounds"], results["alone"]
    cells = [
        len(rounds),
        sum(one["signal"] == "SIGKILL" for one in rounds),
        sum(bool(one["kept"]) for one in rounds),
        sum(bool(one["broken"]) for one in rounds),
        sum(not one["typed"] for one in rounds),
        sum(one["processes"] > 0 for one in rounds),
        sum(one["again"] != 0 for one in rounds),
        sum(not one["same"] for one in rounds),
    ]
    head = (
        "| kills | of these SIGKILL | finished parts were kept | broken files | untyped errors | processes left "
        "| the next run failed | its folder differs in a byte |"
    )
    return (
        f"{head}\n|{'---:|' * len(cells)}\n| {' | '.join(map(str, cells))} |\n\n"
        f"Left alone the command takes {alone['processor']:.1f} s of processor and touches files near its output "
        f"{alone['touched']} times.\n"
    )


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__, quick={"points": 2})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--points", type=int, default=50, help="kills")
    parser.add_argument("--limit", type=int, default=8, help="records of each split")
    options = parser.parse_args(given)
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not live in a child
    one_thread()
    data, log = copied(folder, "reference", 1, options.limit), folder / "log.txt"
    make_inputs(folder, data, log)
    grid, out = folder / "grid.yaml", folder / "killed" / "out"
    grid.write_text(GRID.format(model=folder / "model", data=data))
    words = shlex.split(f"compare --config {shlex.quote(str(grid))} --quiet")
    import_all(folder, {"compare": words}, log)
    path = folder / "compare_kills.json"
    results = read_results(path)
    command = [*words, "-o", str(out)]
    results["alone"] = alone(command, out, log)
    expected = written(out)
    for number in range(len(results.setdefault("rounds", [])), options.points):
        order = random.Random(number)
        moment = moment_of(number, order, results["alone"]["processor"], results["alone"]["touched"], options.points)
        results["rounds"].append(once(command, out, log, moment, expected))
        say(f"{number}: {results['rounds'][-1]}")
        write_results(path, results)
    write_table(folder / "compare_kills.md", table(results))


def alone(command: list[str], out: Path, log: Path) -> dict[str, Any]:
    """Processor time and touches of files of a run that is left alone; its folder stays.

    Raises:
        UsageError: it failed.
    """
    remove(out.parent)
    out.parent.mkdir()
    code, processor = waited(forked(command, log))
    if code:
        raise UsageError(f"{' '.join(command)} ended with {code}: {log.read_text()[-800:]}", "Mend that first.")
    remove(out)
    note = log.with_name("note")
    finished(command, log, near=out.parent, note=note)
    return {"processor": processor, "touched": note_of(note)["touched"]}


def once(command: list[str], out: Path, log: Path, moment: Moment, expected: dict[str, bytes]) -> dict[str, Any]:
    """One round."""
    remove(out)
    ended = killed(command, log, out.parent, moment)
    said = log.read_text(errors="replace")
    left, wrong = kept(out), broken(out)
    again = finished(command, log)
    said += log.read_text(errors="replace")
    found = written(out)
    return {
        "signal": moment.sent.name,
        "at": round(moment.seconds, 3) if moment.event is None else f"touch {moment.event}",
        **ended,
        "kept": left,
        "broken": wrong,
        "typed": "Traceback" not in said and "bug in safetykit" not in said,
        "again": again,
        "same": found == expected and sorted(path.name for path in out.parent.iterdir()) == [out.name],
        "differs": sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)),
    }


if __name__ == "__main__":
    run(main)  # type: ignore[arg-type]
