"""The endpoint under load: the same answers as `eval` gives, and how fast, against loops that ask one by one.

    python bench/serve.py -o OUT [--export EXPORT] [--concurrency 1 --concurrency 8] [--requests 100] [--minutes 30]

The export is by default that of ``bench/soak.py``: the reference VLM `mild` with a gated corrector and a detector. Its
test records are first answered by the export in batches of 32, as `safetykit eval` does; these are the expected
answers. Then `safetykit serve` runs in a process of its own and is asked greedily by as many clients as
``--concurrency`` says, each with a connection that it keeps, every second request as a stream. Clients and servers
share the machine's cores.

Counted are answers whose text, number of tokens, decision or risk differs, and mixed rows: answers that say the canary
word of another record (the name of what its picture shows).

Speeds are tokens a second over those of a loop: `OnnxVLM.generate`, one request after the other in this process,
without HTTP. In every round all are measured in a random order, the loop twice, and the ratios are of one round; the
table has their median, lowest and highest. "Of processor" are tokens for each second that the cores worked on clients
and servers: what there is to gain where all cores are busy, whoever else uses them meanwhile. Beside the loop stand
ONNX Runtime GenAI on the same graphs, one request after the other, which generates for refused prompts too and tells no
risk; the server with one row a batch, so that HTTP costs the same; and the server with `--threads 1`.

Answers of the reference VLM are a few tokens long. So another export is asked, too: the same checkpoint, whose answers
are ended by a token that it never says. Mixed lengths are drawn for each record, the same for all that are measured,
from 8 to 128 tokens with equally many in each octave; ``--length`` asks for as many tokens each. What a row costs the
graphs alone, by the number of rows, stands in a table of its own: where it is the same for one row and for eight, no
batch can gain anything.

A server with a short queue is asked by 64 clients, and what it refuses with 429 is counted. ``--minutes`` lasts the
load that long, and looks at the server's memory. What the output folder holds is kept, and the rest measured.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetykit.bench.batching import costs
from safetykit.bench.batching import lines as lines_of_rows
from safetykit.bench.clients import TOKENS
from safetykit.bench.load import CONTROL, LOOP, WRONG, Question, Served, load, rounds, served, wrong_of
from safetykit.bench.loops import LONGEST, SHORTEST, each_of, loops, mixed_lengths, of_genai, questions
from safetykit.bench.memory_in_use import slope
from safetykit.bench.skeleton import arguments, read_results, run, say, write_results, write_table
from safetykit.bench.soak import CHECKPOINT, RECORDS, make_export
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import cores
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.data.sources import data_path, model_path
from safetykit.toolkit.model.asking import request_of

LEVELS, LENGTHS = (1, 2, 4, 8, 16, 32, 64), (8, 32, 64)
GENAI, SINGLE, BATCHES, THREAD = "GenAI, its own loop", "one row a batch", "batches", "`--threads 1`"
_QUEUE = 32  # of the server with one row a batch, which is asked by more at last
_CROWD = 64  # clients of an overload


@dataclass(frozen=True)
class Settings:
    """How much is measured; see the options."""

    levels: Sequence[int]
    lengths: Sequence[int]
    requests: int
    rounds: int
    max_batch: int
    canaries: int
    minutes: int


def endless(folder: Path, like: str) -> Path:
    """The default export of a checkpoint with the same weights that never ends an answer, beside the default export."""
    checkpoint, export = folder / "endless", folder / "endless-export"
    if not export.is_dir():
        shutil.copytree(model_path(like), checkpoint, dirs_exist_ok=True)
        config = json.loads((checkpoint / "config.json").read_text())
        settings = checkpoint / "generation_config.json"
        never = config.get("image_token_id", config.get("image_token_index"))
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": never}))
        adapters = ("--adapter", folder / "guard", "--adapter", folder / "probe", "--allow-wrong-base")
        words = ("export", checkpoint, *adapters, "-o", export, "-q")
        subprocess.run([sys.executable, "-m", "safetykit", *map(str, words)], check=True)
    return export


def speeds(
    export: Path,
    records: Sequence[Record],
    tokens: int | Sequence[int],
    servers: tuple[Served, Served],
    genai: Path,
    settings: Settings,
) -> dict[str, Any]:
    """Every number of clients beside the loops; ``genai`` is where the export lies in GenAI's layout, or will."""
    model, (batching, single), count = OnnxVLM.from_pretrained(export), servers, settings.requests
    records, most = records[:count], each_of(tokens, len(records))[:count]
    asked, requests = questions(model, records, most), [request_of(record) for record in records]
    arms = loops(model, requests, most)
    arms[GENAI] = of_genai(genai, export, requests, most)
    clients = settings.max_batch * 2
    arms[SINGLE] = lambda: load(single.url, asked, clients, count)
    for level in settings.levels:
        arms[str(level)] = lambda level=level: load(batching.url, asked, level, count)
    with served(export, settings.max_batch, genai.with_suffix(".thread.log"), "--threads", 1) as sparing:
        arms[THREAD] = lambda: load(sparing.url, asked, clients, count)
        return rounds(arms, settings.rounds)


def speeds_by_length(
    export: Path, records: Sequence[Record], servers: tuple[Served, Served], settings: Settings
) -> dict[str, Any]:
    """As many tokens as are asked for: both servers beside the loop."""
    model, (batching, single), found = OnnxVLM.from_pretrained(export), servers, {}
    count, clients = max(1, settings.requests // 2), settings.max_batch * 2
    for length in settings.lengths:
        asked = questions(model, records[:count], length)
        arms = loops(model, [request_of(record) for record in records[:count]], length)
        arms[SINGLE] = lambda asked=asked: load(single.url, asked, clients, count)
        arms[BATCHES] = lambda asked=asked: load(batching.url, asked, clients, count)
        found[str(length)] = rounds(arms, settings.rounds)
        say(f"{length} tokens: {found[str(length)][BATCHES]['over']}")
    return found


def equalities(asked: Sequence[Question], server: Served, settings: Settings) -> dict[str, dict[str, int]]:
    """Every record, alone and among others, whole and as a stream; then many, with canary words."""
    found, clients = {}, settings.max_batch * 2
    for name, of in (("alone", 1), (f"{clients} at once", clients)):
        for how, streams in (("whole", False), ("as streams", True)):
            given = load(server.url, asked, of, len(asked), streams=lambda number, streams=streams: streams)
            found[f"{name}, {how}"] = given["tally"]
    if settings.canaries:
        found[f"{clients} at once, both"] = load(server.url, asked, clients, settings.canaries)["tally"]
    return found


def lasting(asked: Sequence[Question], server: Served, settings: Settings) -> dict[str, Any]:
    """The load for some minutes, with the server's memory after each."""
    began, samples, tallies = time.monotonic(), [], []
    for minute in range(settings.minutes):
        until = began + 60 * (minute + 1)
        tallies.append(load(server.url, asked, settings.max_batch * 2, 10**9, until=until))
        samples.append((60.0 * minute, round(server.resident(), 2)))
        say(f"{minute + 1} min, {tallies[-1]['tally']['answers']} answers, {samples[-1][1]:.0f} MiB")
    answers = sum(one["tally"]["answers"] for one in tallies)
    return {**slope(samples), "answers": answers, "wrong": wrong_of(tallies)}


def measured(
    export: Path, endless_export: Path | None, records: Sequence[Record], out: Path, settings: Settings
) -> dict[str, Any]:
    """Every part that the options ask for and that the results in ``out`` do not hold yet."""
    path, model = out / "serve.json", OnnxVLM.from_pretrained(export)
    asked = questions(model, records, TOKENS)
    found: dict[str, Any] = read_results(path)
    found |= {"records": len(asked), "canaries": sum(one.canary is not None for one in asked)}
    found |= {"max_batch": settings.max_batch, "cpus": cores()}

    def part(name: str, make: Callable[[], Any]) -> None:
        if name not in found:
            found[name] = make()
            write_results(path, found)

    @contextlib.contextmanager
    def servers(folder: Path, name: str) -> Iterator[tuple[Served, Served]]:
        with (
            served(folder, settings.max_batch, out / f"{name}.log") as batching,
            served(folder, 1, out / f"{name}-single.log", max_queue=_QUEUE) as single,
        ):
            yield batching, single

    part("rows", lambda: costs(model, [request_of(record) for record in records], 5 * settings.rounds))
    model.close()
    if not {"speeds", "same", "overload", "peak"} <= found.keys():
        with servers(export, "serve") as both:
            part("speeds", lambda: speeds(export, records, TOKENS, both, out / "genai", settings))
            part("same", lambda: equalities(asked, both[0], settings))
            part("overload", lambda: load(both[1].url, asked, _CROWD, settings.requests * 4)["tally"])
            part("peak", lambda: [round(one.resident("VmHWM")) for one in both])
    if endless_export and not {"mixed", "lengths"} <= found.keys():
        mixed, genai = mixed_lengths(len(records)), out / "endless-genai"
        with servers(endless_export, "endless") as both:
            part("mixed", lambda: speeds(endless_export, records, mixed, both, genai, settings))
            part("lengths", lambda: speeds_by_length(endless_export, records, both, settings))
    if settings.minutes:
        with served(export, settings.max_batch, out / "lasting.log") as server:
            part("memory", lambda: lasting(asked, server, settings))
    return found


def wrong(results: Mapping[str, Any]) -> int:
    """Answers that were not as they must be, in all parts."""
    arms = [results["speeds"], results.get("mixed", {}), *results.get("lengths", {}).values()]
    counted = sum(one["wrong"] for part in arms for one in part.values()) + results.get("memory", {}).get("wrong", 0)
    return counted + wrong_of([{"tally": one} for one in (*results["same"].values(), results["overload"])])


def table(results: Mapping[str, Any]) -> str:
    """Speed by the number of clients and by length, and what must be none."""
    clients = 2 * results["max_batch"]
    lines = [
        f"{results['records']} records, {results['canaries']} of them with canary words; at most"
        f" {results['max_batch']} rows a batch; {results['cpus']} cores, shared by clients and servers.",
        "",
    ]
    lines += [*_by_clients(results["speeds"], clients), ""]
    if "mixed" in results:
        lines += [f"Answers of {SHORTEST} to {LONGEST} tokens:", "", *_by_clients(results["mixed"], clients), ""]
    if "lengths" in results:
        arms = (
            (CONTROL, CONTROL),
            (SINGLE, f"{clients} clients, {SINGLE}"),
            (BATCHES, f"{clients} clients, {BATCHES}"),
        )
        names = [f"{told}{what}" for _, told in arms for what in ("", ", of processor")]
        lines += ["| tokens of each answer | " + " | ".join(names) + " |", "|---:|" + "---:|" * len(names)]
        for length, found in sorted(results["lengths"].items(), key=lambda row: int(row[0])):
            said = [_over(found[name], over) for name, _ in arms for over in ("over", "over_processor")]
            lines.append(f"| {length} | " + " | ".join(said) + " |")
        lines.append("")
    lines += [*lines_of_rows(results["rows"]), ""]
    lines += ["| asked | answers | refused | " + " | ".join(WRONG) + " | 429 |"]
    lines += ["|---|---:|---:|" + "---:|" * (len(WRONG) + 1)]
    for name, tally in {
        **results["same"],
        f"overload: {_CROWD} clients, a queue of {_QUEUE}": results["overload"],
    }.items():
        figures = [tally.get(one, 0) for one in ("answers", "refusals", *WRONG, "429")]
        lines.append(f"| {name} | " + " | ".join(f"{one:,}" for one in figures) + " |")
    lines += [
        "",
        "Peak memory: " + " and ".join(f"{one} MiB" for one in results["peak"]) + " (batches; one row a batch).",
    ]
    if memory := results.get("memory"):
        first, last = memory["by_minute"][0], memory["by_minute"][-1]
        said = (
            f"In {len(memory['by_minute'])} minutes {memory['answers']:,} answers, {memory['wrong']} wrong; memory of"
        )
        said += f" the server after the first and last minute {first:.0f} and {last:.0f} MiB"
        if memory["slope"]:
            value, low, high = memory["slope"]
            said += f", after the first third {value:+.1f} MiB an hour ({low:+.1f} to {high:+.1f}, 95 %)"
        lines.append(said + ".")
    return "\n".join([*lines, ""])


def _by_clients(found: Mapping[str, Mapping[str, Any]], clients: int) -> list[str]:
    lines = ["| clients | p50, ms | p95, ms | tokens a second | over the loop | of processor, over the loop | wrong |"]
    lines += ["|---:|---:|---:|---:|---:|---:|---:|"]
    levels = sorted((name for name in found if name.isdecimal()), key=int)
    for name in (LOOP, CONTROL, GENAI, SINGLE, *levels, THREAD):
        one = found[name]
        named = f"{clients}, {name}" if name in (SINGLE, THREAD) else name
        lines.append(
            f"| {named} | {1000 * one['p50']:.0f} | {1000 * one['p95']:.0f} | {one['tokens_per_second']:.0f} |"
            f" {_over(one)} | {_over(one, 'over_processor')} | {'' if 'loop' in name else one['wrong']} |"
        )
    return lines


def _over(one: Mapping[str, Any], over: str = "over") -> str:
    middle, low, high = one[over]
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and write the table; 1 if an answer was wrong."""
    quick = {"limit": 16, "requests": 16, "rounds": 1, "canaries": 32}
    parser = arguments(__doc__, quick=quick)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results, and for the default export")
    parser.add_argument(
        "--export", type=Path, help="an export folder, without lengths; by default that of bench/soak.py"
    )
    parser.add_argument("--checkpoint", help=f"what is exported, such as a larger one than {CHECKPOINT}")
    parser.add_argument("--data", default=RECORDS, help="records of the export's fits; their test split is asked")
    parser.add_argument("--limit", type=int, default=200, help="of records, spread over the groups")
    parser.add_argument("--concurrency", type=int, action="append", help=f"clients; repeat; by default {LEVELS}")
    parser.add_argument("--length", type=int, action="append", help=f"tokens; repeat; by default {LENGTHS}")
    parser.add_argument("--requests", type=int, default=100, help="for each number of clients and round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max-batch", type=int, default=8, help="of the server")
    parser.add_argument("--canaries", type=int, default=10_000, help="requests that look for canary words")
    parser.add_argument("--minutes", type=int, default=0, help="how long the load lasts while memory is looked at")
    options = parser.parse_args(given)
    if options.export and options.checkpoint:
        parser.error("--checkpoint does nothing with --export, which is there already")
    like = options.checkpoint or CHECKPOINT
    options.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        options.concurrency or LEVELS,
        options.length or LENGTHS,
        options.requests,
        options.rounds,
        options.max_batch,
        options.canaries,
        options.minutes,
    )
    export = options.export or make_export(options.out, checkpoint=like, records=options.data)
    unending = None if options.export else endless(options.out, like)
    records = subset(load_records(data_path(options.data), ["test"]), options.limit)
    results = measured(export, unending, records, options.out, settings)
    write_table(options.out / "serve.md", table(results))
    return int(wrong(results) > 0)


if __name__ == "__main__":
    run(main)
