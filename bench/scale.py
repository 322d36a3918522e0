"""Time and memory of the command line, by size of the checkpoint.

    python bench/scale.py -o FOLDER [--size 0.2B …] [--step inspect …]

For each size a Qwen2.5-VL checkpoint with random bf16 weights is written tensor by tensor, as in bench/memory.py; 7B
has the shape of Qwen2.5-VL-7B-Instruct, and needs 35 GB of disk. Then each step runs as a command of its own: inspect,
fit vlm-guard on a few of the reference texts, export to fp16 with parity, verify with parity, both on one row.

Measured are the wall time, the largest resident memory of the process, and the largest part of it that no file backs
(``RssAnon`` and ``VmSwap`` of ``/proc/PID/status``, looked at every 20 ms). Pages of the checkpoint and of the graphs'
weights that are mapped into the process are in the former and not in the latter: the system drops them when memory is
short. The limit holds for the former.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetykit.bench.memory import SIZES, write_checkpoint
from safetykit.bench.skeleton import arguments, read_results, run, say, write_results, write_table

ROWS = ("--parity-rows", "1")
STEPS: Mapping[str, tuple[str, ...]] = {
    "inspect": ("inspect", "MODEL", "--json"),
    "fit": ("fit", "vlm-guard", "MODEL", "--data", "RECORDS", "-o", "ADAPTER", "--layers", "1"),
    "export": ("export", "MODEL", "--adapter", "ADAPTER", "--precision", "fp16", "-o", "EXPORT", *ROWS),
    "verify": ("verify", "EXPORT", "--model", "MODEL", "--adapter", "ADAPTER", *ROWS),
}
PER_LABEL = 8  # records
MADE = "made"  # marks a folder that is complete
LIMIT = (1.15, 2.0)  # of resident memory: times the checkpoint, plus GB
_POLL = 0.02  # seconds


def main(given: Sequence[str] | None = None) -> int:
    """Measure and write the table."""
    parser = arguments(__doc__, quick={"size": ["tiny"], "step": ["inspect"]})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--size", choices=SIZES, action="append", help="0.2B and 1.6B by default")
    parser.add_argument("--step", choices=STEPS, action="append", help="all by default; later ones need earlier ones")
    parser.add_argument("--scratch", type=Path, help="where checkpoints and exports are made, and deleted")
    parser.add_argument("--keep", type=Path, help="a folder in their place, where they stay for further steps")
    options = parser.parse_args(given)
    results = read_results(options.out / "scale.json")
    for size in options.size or ("0.2B", "1.6B"):
        with kept(options.keep / size) if options.keep else TemporaryDirectory(dir=options.scratch) as scratch:
            work = Path(scratch)
            places = {name: str(work / name.lower()) for name in ("MODEL", "RECORDS", "ADAPTER", "EXPORT")}
            if not (work / MADE).exists():
                say(f"making {size}")
                checkpoint(size, work)
                records(work / "records")
                (work / MADE).touch()
            stored = sum(path.stat().st_size for path in Path(places["MODEL"]).glob("*.safetensors")) / 1e9
            for step in options.step or STEPS:
                say(f"{step}, {size}")
                row = measured([places.get(word, word) for word in STEPS[step]])
                results = results | {f"{size} {step}": {"checkpoint_gb": stored, **row}}
                write_results(options.out / "scale.json", results)
    write_table(options.out / "scale.md", table(results))
    return 0


@contextmanager
def kept(folder: Path) -> Iterator[Path]:
    """A folder that stays."""
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


def checkpoint(size: str, work: Path) -> Path:
    """The checkpoint, whose processor cuts pictures as its tower takes them."""
    folder = write_checkpoint(size, "shards", work)
    patch = json.loads((folder / "config.json").read_text())["vision_config"]["patch_size"]
    for path in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        if path.is_file():
            said = json.loads(path.read_text())
            said.get("image_processor", said)["patch_size"] = patch
            path.write_text(json.dumps(said))
    return folder


def records(folder: Path) -> Path:
    """Some of the reference texts, harmful and harmless, to fit and to calibrate on."""
    from safetykit.toolkit.data.records import load_records
    from safetykit.toolkit.data.sources import data_path

    folder.mkdir()
    lines = []
    for split in ("fit", "calibration"):
        texts = [one for one in load_records(data_path("reference"), [split]) if one.carrier == "text"]
        for label in ("harmful", "harmless"):
            some = [one for one in texts if one.label == label][:PER_LABEL]
            lines += [one.model_dump_json(exclude_none=True) for one in some]
    (folder / "records.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def measured(words: Sequence[str]) -> dict[str, float]:
    """Run a command; seconds, its largest resident memory in GB, and the largest part of it that no file backs.

    Raises:
        SystemExit: it failed; with what it said.
    """
    start, anonymous = time.perf_counter(), 0
    with TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        with open(said, "w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "safetykit.cli", *words], stdout=subprocess.DEVNULL, stderr=errors
            )
            while not (found := os.wait4(process.pid, os.WNOHANG))[0]:
                anonymous = max(anonymous, unbacked(process.pid))
                time.sleep(_POLL)
        _, status, usage = found
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)}: {said.read_text().strip()[-2000:]}")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_gb": usage.ru_maxrss * 1024 / 1e9, "anonymous_gb": anonymous / 1e9}


def unbacked(process: int) -> int:
    """Bytes of a process's memory that no file backs, swapped ones included; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:", "VmSwap:")))


def table(results: Mapping[str, Any]) -> str:
    """One row a size and step, and whether the limit held."""
    head = ("checkpoint", "step", "time", "resident", "of it not backed by a file", "limit")
    rows, held = [head, ("---", "---", *["---:"] * 4)], True
    for size in SIZES:
        for step in STEPS:
            if (row := results.get(f"{size} {step}")) is None:
                continue
            limit = LIMIT[0] * row["checkpoint_gb"] + LIMIT[1]
            held = held and row["peak_gb"] <= limit
            figures = (f"{row[name]:.1f} GB" for name in ("peak_gb", "anonymous_gb"))
            rows.append(
                (
                    f"{size} ({row['checkpoint_gb']:.1f} GB)",
                    step,
                    f"{row['seconds']:.0f} s",
                    *figures,
                    f"{limit:.1f} GB",
                )
            )
    verdict = (
        f"The limit, {LIMIT[0]} times the checkpoint plus {LIMIT[1]:.0f} GB, {'held' if held else 'did not hold'}."
    )
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows] + ["", verdict, ""])


if __name__ == "__main__":
    run(main)
