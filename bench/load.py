"""Load on a server: `safetykit serve` in a process of its own, clients that compare its answers, and rounds that
measure speed beside that of a loop."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from safetykit.adapters.errors import UsageError
from safetykit.bench.clients import SCORE, words_of
from safetykit.bench.skeleton import say
from safetykit.toolkit.model.endpoint import chat_messages
from safetykit.toolkit.model.requests import Generation, Request

WRONG = ("another text", "another decision", "another risk", "another number of tokens", "mixed rows", "failed")
LOOP, CONTROL = "loop", "loop again"  # arms of :func:`rounds`
_MODEL = "bench"
Arm = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Question:
    """A record as it is sent, and what is expected; ``canary`` only its own answer may say."""

    body: dict[str, Any]
    answer: Generation
    threshold: float
    canary: str | None


def body(request: Request, tokens: int) -> dict[str, Any]:
    """A request as OpenAI's interface takes it, its picture in a PNG file."""
    return {"model": _MODEL, "messages": chat_messages(request), "max_tokens": tokens, "temperature": 0}


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Attributes:
        url: where it answers.
        pid: of its process.
    """

    url: str
    pid: int

    def resident(self, what: str = "VmRSS") -> float:
        """Memory of the server now (``VmRSS``) or at most (``VmHWM``), in MiB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


@contextlib.contextmanager
def served(export: Path, max_batch: int, log: Path, *options: object, max_queue: int = 64) -> Iterator[Served]:
    """`safetykit serve` in a process of its own, which writes a log and ends with the block.

    Raises:
        UsageError: it does not start.
    """
    limits = ("--max-batch", max_batch, "--max-queue", max_queue)
    words = ("serve", export, "--name", _MODEL, "--port", 0, *limits, *options, "--json")
    command = [sys.executable, "-m", "safetykit", *map(str, words)]
    with (
        log.open("w") as written,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=written, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            told = "".join(itertools.takewhile("}\n".__ne__, process.stdout)) + "}"
            if "url" not in (value := json.loads(told) if len(told) > 1 else {}):
                raise UsageError("The server does not start.", f"See {log}.")
            yield Served(value["url"], process.pid)
        finally:
            process.terminate()


@dataclass
class Seen:
    """What clients have seen."""

    tally: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


class Client(threading.Thread):
    """Sends questions, one after the other, and compares what comes back."""

    def __init__(
        self, url: str, asked: Iterator[tuple[int, Question]], canaries: set[str], streams: Callable[[int], bool]
    ) -> None:
        super().__init__(daemon=True)
        self._address, self._asked, self._canaries, self._streams = urlsplit(url).netloc, asked, canaries, streams
        self.seen = Seen()

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=300)
        for number, question in self._asked:
            stream = self._streams(number)
            sent = question.body
            if stream:
                sent = {**sent, "stream": True, "stream_options": {"include_usage": True}}
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", json.dumps(sent))
            response = connection.getresponse()
            data = response.read()
            spent = time.perf_counter() - began
            if response.status == 200:
                self.seen.seconds.append(spent)
                value = _streamed(data) if stream else json.loads(data)
                self.seen.tally.update(compared(question, value, self._canaries))
            elif response.status == 429 and response.headers.get("retry-after"):
                self.seen.tally["429"] += 1
            else:
                self.seen.tally["failed"] += 1


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
    tally["with canaries"] += question.canary is not None
    return tally


def _streamed(data: bytes) -> dict[str, Any]:
    """The whole completion of its pieces."""
    lines = [line.removeprefix("data: ") for line in data.decode().split("\n\n") if line]
    *pieces, used = [json.loads(line) for line in lines[:-1]]
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in pieces)
    return {"choices": [{"message": {"content": text}}], "usage": used["usage"], "safetykit": pieces[-1]["safetykit"]}


def load(
    url: str,
    asked: Sequence[Question],
    clients: int,
    requests: int,
    *,
    streams: Callable[[int], bool] = lambda number: number % 2 == 1,
    until: float = float("inf"),
) -> dict[str, Any]:
    """So many requests by so many clients at once, in the order of the questions, again and again.

    Args:
        streams: which requests ask for a stream, by their number; by default every second.
        until: when it ends at the latest, in seconds of the monotonic clock.
    """
    numbered = enumerate(itertools.islice(itertools.cycle(asked), requests))
    turn = threading.Lock()

    def next_ones() -> Iterator[tuple[int, Question]]:
        while time.monotonic() < until:
            with turn:
                one = next(numbered, None)
            if one is None:
                return
            yield one

    canaries = {one.canary for one in asked if one.canary}
    threads = [Client(url, next_ones(), canaries, streams) for _ in range(clients)]
    began = time.perf_counter()
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    spent = time.perf_counter() - began
    tally = sum((one.seen.tally for one in threads), Counter())
    seconds = [second for one in threads for second in one.seen.seconds]
    rates = {"tokens": tally["tokens"], "tokens_per_second": tally["tokens"] / spent}
    return {**percentiles(seconds), **rates, "tally": dict(sorted(tally.items()))}


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The median and the 95th percentile."""
    return {"p50": float(np.percentile(seconds, 50)), "p95": float(np.percentile(seconds, 95))}


def loop(answer: Callable[[Request, int], int], requests: Sequence[Request], most: Sequence[int]) -> dict[str, Any]:
    """One request after the other, each of at most so many tokens; ``answer`` gives how many it generated."""
    seconds, tokens = [], 0
    for one, size in zip(requests, most, strict=True):
        began = time.perf_counter()
        tokens += answer(one, size)
        seconds.append(time.perf_counter() - began)
    return {**percentiles(seconds), "tokens": tokens, "tokens_per_second": tokens / sum(seconds)}


def processor_seconds() -> float:
    """Time that the cores have spent on this process and those that it has started, servers among them."""
    found, left = 0, [os.getpid()]
    while left:
        folder = Path("/proc", str(left.pop()))
        with contextlib.suppress(OSError):  # it has just ended
            found += sum(map(int, (folder / "stat").read_text().rsplit(")", 1)[1].split()[11:13]))
            left += [int(one) for task in folder.glob("task/*/children") for one in task.read_text().split()]
    return found / os.sysconf("SC_CLK_TCK")


def rounds(arms: Mapping[str, Arm], count: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    """By arm the medians of some rounds, each in an order of its own.

    ``over`` are its tokens a second over those of the loop in the same round (median, lowest, highest);
    ``over_processor`` its tokens for each second of the processor, of clients and servers together.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    order = random.Random(seed)
    for arm in arms.values():  # everything warm
        arm()
    for at in range(count):
        for name in order.sample(list(arms), len(arms)):
            before = processor_seconds()
            one = arms[name]()
            found[name].append({**one, "processor": one["tokens"] / max(0.01, processor_seconds() - before)})
        say(f"round {at + 1} of {count}")

    def over(runs: Sequence[Mapping[str, Any]], rate: str) -> list[float]:
        ratios = np.array([one[rate] for one in runs]) / np.array([one[rate] for one in found[LOOP]])
        return [float(one) for one in (np.median(ratios), ratios.min(), ratios.max())]

    return {
        name: {
            **{key: float(np.median([one[key] for one in runs])) for key in ("p50", "p95", "tokens_per_second")},
            "over": over(runs, "tokens_per_second"),
            "over_processor": over(runs, "processor"),
            "wrong": wrong_of(runs),
        }
        for name, runs in found.items()
    }


def wrong_of(runs: Sequence[Mapping[str, Any]]) -> int:
    """How many answers of these were not as they must be."""
    return sum(one.get("tally", {}).get(name, 0) for one in runs for name in WRONG)
