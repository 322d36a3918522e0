"""Memory and pace of fits, by the number of records.

    python bench/records.py -o FOLDER [--records 1000 …] [--method vlm-guard …] [--model MODEL]

For each number, the reference records of the splits that fits read are written into a Parquet file again and again,
each copy with ids of its own and pictures of its own (one pixel tells them apart), 48 × 48 in PNG. The model is by
default a LLaVA of 16 layers of width 64 with random weights: what is measured is the way of the records, and the
adapters mean nothing. Each fit is a command of its own. Measured are its records a second while records go through the
model, its wall time, and its largest memory: resident, mapped files included, and anonymous, which no file stands
behind.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetykit.bench import random_model
from safetykit.bench.skeleton import arguments, read_results, run, say, write_results, write_table
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path, model_path

METHODS: Mapping[str, tuple[str, ...]] = {
    "vlm-guard": (),
    "care": ("--contrast", "carrier"),
    "one-pass": ("--refusal", "no ."),
    "sasa": ("--refusal", "no ."),
}
SIZES = (1_000, 10_000, 100_000)
SHAPE = ("--layers", "16", "--width", "64")
GROUP = 256  # rows of a group
POLL = 0.02  # seconds


def main(given: Sequence[str] | None = None) -> int:
    """Measure and write the table."""
    parser = arguments(__doc__, quick={"records": [100], "method": ["vlm-guard"]})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results; what is there is kept")
    parser.add_argument("--records", type=int, action="append", help="1,000, 10,000 and 100,000 by default")
    parser.add_argument("--method", choices=METHODS, action="append", help="all by default")
    parser.add_argument("--model", help="another model than the small one with random weights")
    parser.add_argument("--scratch", type=Path, help="where records and adapters are made, and deleted")
    options = parser.parse_args(given)
    results = read_results(options.out / "records.json")
    with TemporaryDirectory(dir=options.scratch, prefix="records-") as scratch:
        work = Path(scratch)
        if options.model is None:
            random_model.main([str(work / "model"), *SHAPE])
        model = model_path(options.model or work / "model")
        for count in options.records or SIZES:
            data = write(work / f"{count}.parquet", count)
            for method in options.method or METHODS:
                say(f"{method}, {count:,} records")
                results |= {f"{method} {count}": measured(method, str(model), data, work)}
                write_results(options.out / "records.json", results)
            data.unlink()
    write_table(options.out / "records.md", table(results))
    return 0


def write(path: Path, count: int) -> Path:
    """``count`` records in Parquet, group by group."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = ("id", "prompt", "response", "label", "category", "carrier", "split", "pair")
    schema = pa.schema([*((name, pa.string()) for name in texts), ("image", picture), ("tags", pa.list_(pa.string()))])
    with parquet.ParquetWriter(path, schema) as file:
        rows = []
        for row in copies(load_records(data_path("reference"), ["fit", "calibration"]), count):
            rows.append(row)
            if len(rows) == GROUP:
                file.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            file.write_table(pa.Table.from_pylist(rows, schema))
    return path


def copies(records: Sequence[Record], count: int) -> Iterator[dict[str, Any]]:
    """The records as rows, over and over; a thousand are drawn evenly from all."""
    first = [records[at * len(records) // min(count, len(records))] for at in range(min(count, len(records)))]
    for at in range(count):
        copy, which = divmod(at, len(first))
        record = first[which]
        row = record.model_dump(mode="json")
        row |= {"id": f"{copy}:{record.id}", "pair": record.pair and f"{copy}:{record.pair}"}
        if (image := record.picture()) is not None:
            image = image.copy()
            image.putpixel((0, 0), (copy % 256, copy // 256, 0))
            image.save(held := io.BytesIO(), "PNG")
            row["image"] = {"bytes": held.getvalue(), "path": None}
        yield row


def measured(method: str, model: str, data: Path, work: Path) -> dict[str, float]:
    """One fit in a process of its own.

    Raises:
        SystemExit: it failed; with what it said.
    """
    words = ["fit", method, model, "--data", str(data), "-o", str(work / "adapter"), "--overwrite", "--json"]
    start = time.perf_counter()
    with open(work / "stderr", "w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "safetykit.cli", *words, *METHODS[method]],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "TMPDIR": str(work)},
        )
        peaks = {"RssAnon": 0.0, "VmHWM": 0.0}
        watch = threading.Thread(target=_watch, args=(process, peaks))
        watch.start()
        out, _ = process.communicate()
        watch.join()
        seconds = time.perf_counter() - start
        if process.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(words)}: {errors.read().strip()[-2000:]}")
    pace = json.loads(out)["throughput"]
    return {
        "seconds": seconds,
        "resident_mb": peaks["VmHWM"],
        "anonymous_mb": peaks["RssAnon"],
        "passed": pace["records"],
        "records_per_second": pace["records_per_second"],
    }


def _watch(process: subprocess.Popen[str], peaks: dict[str, float]) -> None:
    """The largest values that the system tells of the process's memory, in MiB."""
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]) / 1024)
        time.sleep(POLL)


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """One row a method and number of records."""
    lines = [
        "| method | records | largest memory | of it anonymous | records a second | whole command |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for method in METHODS:
        counts = sorted(int(key.split()[1]) for key in results if key.split()[0] == method)
        for count in counts:
            row = results[f"{method} {count}"]
            lines.append(
                f"| {method} | {count:,} | {row['resident_mb']:,.0f} MiB | {row['anonymous_mb']:,.0f} MiB "
                f"| {row['records_per_second']:,.0f} | {row['seconds']:,.0f} s |"
            )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    run(main)
