"""What the alarm of drift sees, and how often it is wrong.

    python bench/drift.py -o OUT [--export EXPORT] [--window 500] [--windows 20] [--streams 200]

The export is by default that of ``bench/soak.py``: the reference VLM `mild` with a gated corrector and a detector. It
reads every calibration and test record once. Streams of prompts are then drawn from their scores, with replacement, and
given to what `safetykit serve` compares them with. Counted is in which share of the streams any alarm came within so
many windows: for the calibration's own harmless records (every alarm is false), for harmless records of the test split,
and where a share of the prompts is harmful. Last, a server in a process of its own gets a window of harmless prompts,
and then one of harmful ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safetykit.bench.load import served
from safetykit.bench.skeleton import arguments, run, say, write_results, write_table
from safetykit.bench.soak import make_export
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.serve.drift import RISK, Drift, Reference, references_of
from safetykit.toolkit.data.records import Record, load_records
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.endpoint import Endpoint

FALSE_ALARMS = 0.01
HARMFUL = (0.02, 0.05, 0.1, 0.2, 0.5)
_BATCH = 32

Seen = tuple[Mapping[str, float], bool]  # scores of a prompt, and whether it has a picture


def read(model: OnnxVLM, records: Sequence[Record]) -> list[Seen]:
    """What a server would count of each record."""
    found: list[Seen] = []
    threshold = model.detector.threshold if model.detector else 0.0
    for at in range(0, len(records), _BATCH):
        some = records[at : at + _BATCH]
        answers = model.generate([request_of(record) for record in some], 1)
        for record, answer in zip(some, answers, strict=True):
            scores = {**answer.scores, **({RISK: answer.scores["risk"] + threshold} if "risk" in answer.scores else {})}
            found.append((scores, record.pictured))
    return found


def kinds_of(records: Sequence[Record]) -> dict[str, list[tuple[float, list[int]]]]:
    """The streams: of which records, by place, with which share."""

    def places(split: str, label: str, *, known: bool = False) -> list[int]:
        carriers = {record.carrier for record in records if record.split == "calibration"}
        return [
            at
            for at, record in enumerate(records)
            if (record.split, record.label) == (split, label) and (not known or record.carrier in carriers)
        ]

    harmless, harmful = places("calibration", "harmless"), places("test", "harmful")
    kinds = {
        "harmless calibration records": [(1.0, harmless)],
        "harmless test records, of the calibration's carriers": [(1.0, places("test", "harmless", known=True))],
        "harmless test records, all carriers": [(1.0, places("test", "harmless"))],
    }
    for share in HARMFUL:
        name = f"harmless calibration records, {share:.0%} harmful test records among them"
        kinds[name] = [(1 - share, harmless), (share, harmful)]
    return kinds


def alarms(
    references: Sequence[Reference], draws: Iterator[Seen], *, window: int, windows: int
) -> Iterator[tuple[int, bool]]:
    """Whether there was an alarm in a stream, after every ``window`` prompts."""
    drift, rung = Drift(references, window=window, false_alarms=FALSE_ALARMS), False
    for at in range(1, windows + 1):
        for _ in range(window):
            scores, pictured = next(draws)
            rung |= any(found.alarm for found in drift.note(scores, pictured=pictured))
        yield at, rung


def drawn(
    seen: Sequence[Seen], mixed: Sequence[tuple[float, list[int]]], prompts: int, random: np.random.Generator
) -> Iterator[Seen]:
    """So many prompts, each from one of the kinds as their shares say."""
    each = [random.choice(places, prompts) for _, places in mixed]
    kinds = random.choice(len(mixed), prompts, p=[share for share, _ in mixed])
    return (seen[at] for at in np.stack(each)[kinds, np.arange(prompts)])


def measured(export: Path, data: str, *, window: int, windows: int, streams: int, log: Path) -> dict[str, Any]:
    """The shares of streams with an alarm, and what a server said."""
    records = list(load_records(data_path(data), ["calibration", "test"]))
    model = OnnxVLM.from_pretrained(export)
    references, seen = references_of(export, model.manifest), read(model, records)
    model.close()
    times = sorted({1, 5, windows} & set(range(1, windows + 1)))
    rows = {}
    for kind, mixed in kinds_of(records).items():
        counts = dict.fromkeys(times, 0)
        for stream in range(streams):
            draws = drawn(seen, mixed, window * windows, np.random.default_rng(stream))
            for at, rung in alarms(references, draws, window=window, windows=windows):
                counts[at] = counts.get(at, 0) + rung
        rows[kind] = {str(at): counts[at] for at in times}
        say(f"{kind}: {rows[kind]} of {streams} streams")
    return {
        "references": [one.told() for one in references],
        "window": window,
        "streams": streams,
        "false_alarms": FALSE_ALARMS,
        "rows": rows,
        "served": told(export, records, window=100, log=log),
    }


def told(export: Path, records: Sequence[Record], *, window: int, log: Path) -> list[str]:
    """What a server logs about drift when harmless prompts are followed by harmful ones."""
    with served(export, 8, log, "--drift-window", window) as server:
        asked = Endpoint(f"{server.url}/v1")
        for label in ("harmless", "harmful"):
            some = [record for record in records if record.label == label and not record.pictured]
            for at in range(0, window, 20):
                batch = [some[place % len(some)] for place in range(at, at + 20)]
                asked.generate([request_of(record) for record in batch], 1)
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    said = [one for one in lines if one["event"].startswith("drift")]
    return [
        f"{one['event']}: {one['what']} above {one['above']:.4g} in {one['share']:.0%} of prompts, expected "
        f"{one['expected']:.0%}"
        for one in said
    ]


def table(results: Mapping[str, Any]) -> str:
    """A row a kind of stream."""
    named = [f"{one['what']} (pictures: {one['pictures']}, {one['records']} records)" for one in results["references"]]
    said = (
        f"{results['streams']} streams a row, windows of {results['window']} prompts of each kind, at most "
        f"{results['false_alarms']:.0%} false alarms promised. Watched: {', '.join(named)}."
    )
    times = list(next(iter(results["rows"].values())))
    lines = [said, "", "| streams with an alarm, of | " + " | ".join(f"within {one}" for one in times) + " |"]
    lines.append("|---|" + "---:|" * len(times))
    for kind, counts in results["rows"].items():
        cells = " | ".join(f"{100 * counts[at] / results['streams']:.1f} %" for at in times)
        lines.append(f"| {kind} | {cells} |")
    heard = "; ".join(f"`{one}`" for one in results["served"]) or "nothing"
    lines += ["", f"A server that got 100 harmless prompts and then 100 harmful ones (windows of 100) logged: {heard}."]
    return "\n".join([*lines, ""])


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and write the table; 1 where false alarms are more than promised, or the server said nothing."""
    parser = arguments(__doc__, quick={"window": 50, "windows": 2, "streams": 3})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results, and for the default export")
    parser.add_argument("--export", type=Path, help="an export folder; by default that of bench/soak.py")
    parser.add_argument("--data", default="reference", help="records; calibration and test split are read")
    parser.add_argument("--window", type=int, default=500, help="prompts of a window")
    parser.add_argument("--windows", type=int, default=20, help="of a stream")
    parser.add_argument("--streams", type=int, default=200, help="drawn for each row")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    sizes = {"window": options.window, "windows": options.windows, "streams": options.streams}
    results = measured(options.export or make_export(options.out), options.data, **sizes, log=options.out / "serve.log")
    write_results(options.out / "drift.json", results)
    write_table(options.out / "drift.md", table(results))
    false = next(iter(results["rows"].values()))
    return int(max(false.values()) > FALSE_ALARMS * results["streams"] or not results["served"])


if __name__ == "__main__":
    run(main)
