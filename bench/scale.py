"""Time and memory of the command line, by size of the checkpoint.

    python bench/scale.py -o FOLDER [--size 0.2B …] [--step inspect …]

For each size a Qwen2.5-VL checkpoint with random bf16 weights is written tensor by tensor, as in bench/memory.py; 7B
has the shape of Qwen2.5-VL-7B-Instruct. Then each step runs as a command of its own: inspect, fit vlm-guard on a few of
the reference texts, export to fp16 with parity, verify with parity. Measured are the wall time and the largest resident
memory of the process, the checkpoint's pages that are mapped into it included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetykit.bench.memory import SIZES, write_checkpoint
from safetykit.bench.skeleton import arguments, read_results, run, say, write_results, write_table

STEPS: Mapping[str, tuple[str, ...]] = {
    "inspect": ("inspect", "MODEL", "--json"),
    "fit": ("fit", "vlm-guard", "MODEL", "--data", "RECORDS", "-o", "ADAPTER", "--layers", "1"),
    "export": ("export", "MODEL", "--adapter", "ADAPTER", "--precision", "fp16", "-o", "EXPORT"),
    "verify": ("verify", "EXPORT", "--model", "MODEL", "--adapter", "ADAPTER"),
}
PER_LABEL = 8  # records


def main(given: Sequence[str] | None = None) -> int:
    """Measure and write the table."""
    parser = arguments(__doc__, quick={"size": ["tiny"], "step": ["inspect"]})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--size", choices=SIZES, action="append", help="0.2B and 1.6B by default")
    parser.add_argument("--step", choices=STEPS, action="append", help="all by default; later ones need earlier ones")
    parser.add_argument("--scratch", type=Path, help="where checkpoints and exports are made, and deleted")
    options = parser.parse_args(given)
    results = read_results(options.out / "scale.json")
    for size in options.size or ("0.2B", "1.6B"):
        with TemporaryDirectory(dir=options.scratch, prefix="scale-") as scratch:
            work = Path(scratch)
            say(f"making {size}")
            places = {
                "MODEL": str(checkpoint(size, work)),
                "RECORDS": str(records(work / "records")),
                "ADAPTER": str(work / "adapter"),
                "EXPORT": str(work / "export"),
            }
            stored = sum(path.stat().st_size for path in Path(places["MODEL"]).glob("*.safetensors")) / 1e9
            for step in options.step or STEPS:
                say(f"{step}, {size}")
                row = measured([places.get(word, word) for word in STEPS[step]])
                results = results | {f"{size} {step}": {"checkpoint_gb": stored, **row}}
                write_results(options.out / "scale.json", results)
    write_table(options.out / "scale.md", table(results))
    return 0


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


def measured(words: Sequence[str]) -> dict[str, Any]:
    """Run a command; seconds, and its largest resident memory in GB.

    Raises:
        SystemExit: it failed; with what it said.
    """
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        with open(said, "w") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "safetykit.cli", *words], stdout=subprocess.DEVNULL, stderr=errors
            )
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(words)}: {said.read_text().strip()[-2000:]}")
    return {"seconds": time.perf_counter() - start, "peak_gb": usage.ru_maxrss * 1024 / 1e9}


def table(results: Mapping[str, Any]) -> str:
    """One row a size, time and memory of each step."""
    steps = [step for step in STEPS if any(key.endswith(f" {step}") for key in results)]
    rows = [("checkpoint", *steps), ("---", *["---:"] * len(steps))]
    for size in (size for size in SIZES if any(key.startswith(f"{size} ") for key in results)):
        found = {step: results[f"{size} {step}"] for step in steps if f"{size} {step}" in results}
        cells = [f"{row['seconds']:.0f} s, {row['peak_gb']:.1f} GB" for row in found.values()]
        stored = next(iter(found.values()))["checkpoint_gb"]
        by_step = dict(zip(found, cells, strict=True))
        rows.append((f"{size} ({stored:.1f} GB)", *(by_step.get(step, "–") for step in steps)))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


if __name__ == "__main__":
    run(main)
