"""The endpoint under load: the same answers as `eval` gives, and how fast, against a loop that asks one by one.

    python bench/serve.py -o OUT [--export EXPORT] [--concurrency 1 --concurrency 8] [--requests 200] [--max-batch 8]

The export is by default that of ``bench/soak.py``: the reference VLM `mild` with a gated corrector and a detector. Its
test records are first answered by the export in batches of 32, as `safetykit eval` does; these are the expected
answers. Then `safetykit serve` runs in a process of its own and is asked greedily by as many clients as
``--concurrency`` says, each with a connection that it keeps, every second request as a stream.

Counted are answers whose text, number of tokens, decision or risk differs, and mixed rows: answers that say the canary
word of another record (the name of what its picture shows). The sequential loop is `OnnxVLM.generate`, one request
after the other in this process, without HTTP. Clients and server share the machine's cores.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from safetykit.bench.clients import SCORE, TOKENS, words_of
from safetykit.bench.skeleton import arguments, cpus, run, say, write_results, write_table
from safetykit.bench.soak import canary_of, make_export
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.endpoint import chat_messages
from safetykit.toolkit.model.requests import Generation, Request

LEVELS = (1, 2, 4, 8, 16, 32, 64)
WRONG = ("another text", "another decision", "another risk", "another number of tokens", "mixed rows", "failed")
_BATCH = 32  # as of `eval`
_MODEL = "bench"


@dataclass(frozen=True)
class Question:
    """A record as it is sent, and what is expected; ``canary`` only its own answer may say."""

    body: dict[str, Any]
    answer: Generation
    threshold: float
    canary: str | None


def questions(model: OnnxVLM, records: Sequence[Record]) -> tuple[list[Question], dict[str, float]]:
    """Every record with the answer that a batch gives it, and how fast a loop answers them one by one."""
    asked = [request_of(record) for record in records]
    answers = [one for at in range(0, len(asked), _BATCH) for one in model.generate(asked[at : at + _BATCH], TOKENS)]
    threshold = model.detector.threshold if model.detector else 0.0
    seconds = []
    for one in asked:
        began = time.perf_counter()
        model.generate(one, TOKENS)
        seconds.append(time.perf_counter() - began)
    found = [
        Question(body(request), answer, threshold, canary_of(record, answer))
        for record, request, answer in zip(records, asked, answers, strict=True)
    ]
    tokens = sum(len(one.token_ids) for one in answers if not one.refused)
    return found, {**percentiles(seconds), "tokens_per_second": tokens / sum(seconds)}


def body(request: Request) -> dict[str, Any]:
    """A request as OpenAI's interface takes it, its picture in a PNG file."""
    return {"model": _MODEL, "messages": chat_messages(request), "max_tokens": TOKENS, "temperature": 0}


@contextlib.contextmanager
def served(export: Path, max_batch: int, log: Path, *options: object) -> Iterator[str]:
    """The URL of `safetykit serve` in a process of its own, which writes a log and ends with the block."""
    limits = ("--max-batch", max_batch, "--max-queue", max(LEVELS))
    words = ("serve", export, "--name", _MODEL, "--port", 0, *limits, *options, "--json")
    command = [sys.executable, "-m", "safetykit", *map(str, words)]
    with (
        log.open("w") as written,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=written, text=True) as process,
    ):
        assert process.stdout is not None
        told = "".join(iter(process.stdout.readline, "}\n")) + "}"
        try:
            yield json.loads(told)["url"]
        finally:
            process.terminate()


class Client(threading.Thread):
    """Sends questions, one after the other, and compares what comes back."""

    def __init__(self, url: str, asked: Iterator[tuple[int, Question]], canaries: set[str]) -> None:
        super().__init__(daemon=True)
        self._address, self._asked, self._canaries = urlsplit(url).netloc, asked, canaries
        self.tally: Counter[str] = Counter()
        self.seconds: list[float] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=120)
        for number, question in self._asked:
            stream = number % 2 == 1
            sent = (
                {**question.body, "stream": True, "stream_options": {"include_usage": True}}
                if stream
                else question.body
            )
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", json.dumps(sent))
            response = connection.getresponse()
            data = response.read()
            self.seconds.append(time.perf_counter() - began)
            if response.status == 200:
                value = _streamed(data) if stream else json.loads(data)
                self.tally.update(compared(question, value, self._canaries))
            else:
                self.tally["failed"] += 1


def compared(question: Question, value: Mapping[str, Any], canaries: set[str]) -> Counter[str]:
    """What of a completion differs from the expected answer; ``canaries`` are those of all questions."""
    expected, (choice,), verdict = question.answer, value["choices"], value["safetykit"]
    text, tokens = choice["message"]["content"], value["usage"]["completion_tokens"]
    risk = expected.scores.get("risk", 0.0) + question.threshold
    tally = Counter({"answers": 1, "refusals": verdict["refused"], "tokens": 0 if verdict["refused"] else tokens})
    tally["another text"] += text != expected.text
    tally["another number of tokens"] += tokens != len(expected.token_ids)
    tally["another decision"] += verdict["refused"] != expected.refused
    if verdict["risk"] is not None:
        tally["another risk"] += abs(verdict["risk"] - risk) > SCORE * max(1.0, abs(risk))
    tally["mixed rows"] += bool(words_of(text) & canaries - words_of(expected.text))
    return tally


def _streamed(data: bytes) -> dict[str, Any]:
    """The whole completion of its pieces."""
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    *pieces, used = [json.loads(line) for line in lines[:-1]]
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in pieces)
    return {"choices": [{"message": {"content": text}}], "usage": used["usage"], "safetykit": pieces[-1]["safetykit"]}


def load(url: str, asked: Sequence[Question], clients: int, requests: int) -> dict[str, Any]:
    """So many requests by so many clients at once, in the order of the questions, again and again."""
    numbered = enumerate(itertools.islice(itertools.cycle(asked), requests))
    turn = threading.Lock()

    def next_ones() -> Iterator[tuple[int, Question]]:
        while True:
            with turn:
                one = next(numbered, None)
            if one is None:
                return
            yield one

    canaries = {one.canary for one in asked if one.canary}
    threads = [Client(url, next_ones(), canaries) for _ in range(clients)]
    began = time.perf_counter()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    spent = time.perf_counter() - began
    tally = sum((one.tally for one in threads), Counter())
    seconds = [second for one in threads for second in one.seconds]
    rates = {"tokens_per_second": tally["tokens"] / spent, "requests_per_second": len(seconds) / spent}
    return {"clients": clients, **percentiles(seconds), **rates, "tally": dict(sorted(tally.items()))}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The median and the 95th percentile."""
    return {"p50": float(np.percentile(seconds, 50)), "p95": float(np.percentile(seconds, 95))}


def measured(
    export: Path, records: Sequence[Record], log: Path, *, levels: Sequence[int], requests: int, max_batch: int
) -> dict[str, Any]:
    """Everything: the loop, then every number of clients."""
    model = OnnxVLM.from_pretrained(export)
    asked, loop = questions(model, records)
    model.close()
    found = []
    with served(export, max_batch, log) as url:
        load(url, asked, 1, len(asked))  # every record once, and everything warm
        for clients in levels:
            found.append(load(url, asked, clients, requests))
            say(f"{clients} clients: {found[-1]['tokens_per_second']:.0f} tokens a second, {found[-1]['tally']}")
    canaries = sum(one.canary is not None for one in asked)
    return {
        "loop": loop,
        "levels": found,
        "records": len(asked),
        "canaries": canaries,
        "max_batch": max_batch,
        "cpus": cpus(),
    }


def table(results: Mapping[str, Any]) -> str:
    """Speed by the number of clients, and what must be none."""
    loop = results["loop"]
    said = (
        f"{results['records']} records, {results['canaries']} of them with canary words; at most"
        f" {results['max_batch']} rows a batch; {results['cpus']} cores, shared by clients and server."
    )
    head = ["| clients | p50, ms | p95, ms | tokens a second | over the loop | " + " | ".join(WRONG) + " |"]
    head.append("|---:|---:|---:|---:|---:|" + "---:|" * len(WRONG))
    rows = [
        f"| loop | {1000 * loop['p50']:.0f} | {1000 * loop['p95']:.0f} | {loop['tokens_per_second']:.0f} | 1 |"
        + " |" * len(WRONG)
    ]
    for one in results["levels"]:
        ratio = one["tokens_per_second"] / loop["tokens_per_second"]
        wrong = " | ".join(str(one["tally"].get(name, 0)) for name in WRONG)
        rows.append(
            f"| {one['clients']} | {1000 * one['p50']:.0f} | {1000 * one['p95']:.0f} | {one['tokens_per_second']:.0f} |"
            f" {ratio:.2f} | {wrong} |"
        )
    return "\n".join([said, "", *head, *rows, ""])


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and write the table; 1 if an answer was wrong."""
    parser = arguments(__doc__, quick={"limit": 16, "requests": 32})
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results, and for the default export")
    parser.add_argument("--export", type=Path, help="an export folder; by default that of bench/soak.py")
    parser.add_argument("--data", default="reference", help="records; their test split is asked")
    parser.add_argument("--limit", type=int, default=200, help="of records, spread over the groups")
    parser.add_argument("--concurrency", type=int, action="append", help=f"clients; repeat; by default {LEVELS}")
    parser.add_argument("--requests", type=int, default=400, help="for each number of clients")
    parser.add_argument("--max-batch", type=int, default=8, help="of the server")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    export = options.export or make_export(options.out)
    records = subset(load_records(data_path(options.data), ["test"]), options.limit)
    levels = options.concurrency or list(LEVELS)
    log = options.out / "serve.log"
    results = measured(export, records, log, levels=levels, requests=options.requests, max_batch=options.max_batch)
    write_results(options.out / "serve.json", results)
    write_table(options.out / "serve.md", table(results))
    return int(any(one["tally"].get(name) for one in results["levels"] for name in WRONG))


if __name__ == "__main__":
    run(main)
