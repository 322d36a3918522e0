"""Clients of one session: what each asks, what it gets when nobody else asks, and whether it gets that."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safetykit.adapters.errors import SafetykitError
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.model.requests import Generation, Request

TOKENS = 12  # of an answer; the reference records' are shorter
SCORE = 1e-3  # by which padding may move a score: float32 sums in another order
EXAMPLES = 5  # of each failure that are kept
FAILURES = (
    *("leak", "another answer", "another score", "untyped", "refused without reason"),
    "answered although refused alone",
)


@dataclass(frozen=True)
class Question:
    """A request as a client sends it, and what it gets when nobody else asks.

    Attributes:
        given: arguments of :class:`Request`; a client makes it anew each time.
        answer: the expected answer; None where an error is expected.
        canary: the word that only its own answer may say; None if it has none.
    """

    name: str
    given: Mapping[str, Any]
    answer: Generation | None
    canary: str | None = None


@dataclass
class Counts:
    """What the threads have seen; each thread has one of its own."""

    tally: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    slowest: float = 0.0

    def add(self, kind: str, example: str) -> None:
        """Count a failure, and keep the first ones."""
        self.tally[kind] += 1
        if len(kept := self.examples.setdefault(kind, [])) < EXAMPLES:
            kept.append(example[:300])

    def merge(self, other: Counts) -> None:
        """Add what another thread has seen."""
        self.tally += other.tally
        self.slowest = max(self.slowest, other.slowest)
        for kind, kept in other.examples.items():
            self.examples[kind] = [*self.examples.get(kind, []), *kept][:EXAMPLES]


def words_of(text: str) -> set[str]:
    """Lower-case words, punctuation aside."""
    return set("".join(one if one.isalnum() else " " for one in text.lower()).split())


class Client:
    """One thread's requests, compared with what is expected."""

    def __init__(self, vlm: OnnxVLM, asked: Sequence[Question], rows: int, seed: int) -> None:
        self.vlm, self.rows, self.counts = vlm, rows, Counts()
        self._random = random.Random(seed)
        self._good = [one for one in asked if one.answer is not None]
        self._bad = [one for one in asked if one.answer is None]
        self._canaries = {one.canary for one in asked if one.canary}

    def batch(self) -> None:
        """Send a batch, and look at what comes back; half of the batches hold one odd request."""
        chosen = [self._random.choice(self._good) for _ in range(self._random.randint(1, self.rows))]
        if self._bad and self._random.random() < 0.5:
            chosen[self._random.randrange(len(chosen))] = self._random.choice(self._bad)
        self._send(chosen)

    def warm(self) -> None:
        """Send the largest batches there can be: the longest requests, with pictures and without."""
        for pictured in (True, False):
            some = [one for one in self._good if (one.given.get("image") is not None) == pictured]
            if longest := sorted(some, key=lambda one: len(one.given["prompt"]))[-1:]:
                self._send(longest * self.rows)

    def _send(self, chosen: Sequence[Question]) -> None:
        bad = [one for one in chosen if one.answer is None]
        began = time.monotonic()
        try:
            answers = self.vlm.generate([Request(**one.given) for one in chosen], TOKENS)
        except SafetykitError as error:
            self.counts.tally["refused batches"] += 1
            self._look_for_leaks(str(error), chosen if len(chosen) == 1 else bad)
            if not bad:
                self.counts.add("refused without reason", f"{[one.name for one in chosen]}: {error}")
            elif rest := [one for one in chosen if one.answer is not None]:
                self._send(rest)
            return
        except Exception as error:  # what a server would answer with "internal error"
            self.counts.add("untyped", f"{error!r}, of {len(chosen)} requests: {', '.join(one.name for one in chosen)}")
            return
        self.counts.slowest = max(self.counts.slowest, time.monotonic() - began)
        self.counts.tally["batches"] += 1
        for question, answer in zip(chosen, answers, strict=True):
            self._compare(question, answer)

    def _compare(self, question: Question, answer: Generation) -> None:
        self.counts.tally["answers"] += 1
        self.counts.tally["with pictures"] += question.given.get("image") is not None
        self.counts.tally["with canaries"] += question.canary is not None
        expected = question.answer
        if expected is None:
            self.counts.add("answered although refused alone", f"{question.name}: {answer!r}")
            return
        self.counts.tally["refusals"] += answer.refused
        same = (answer.token_ids, answer.refused) == (expected.token_ids, expected.refused)
        near = answer.scores.keys() == expected.scores.keys() and all(
            abs(value - expected.scores[name]) <= SCORE * max(1.0, abs(value)) for name, value in answer.scores.items()
        )
        if not same:
            self.counts.add("another answer", f"{question.name}: {answer!r}, not {expected!r}")
        elif not near:
            self.counts.add("another score", f"{question.name}: {answer.scores}, not {expected.scores}")
        self._look_for_leaks(answer.text, [question])

    def _look_for_leaks(self, text: str, own: Sequence[Question]) -> None:
        said = words_of(text) & self._canaries
        known = {
            word for one in own for word in words_of(f"{one.given['prompt']} {one.answer.text if one.answer else ''}")
        }
        if said - known:
            self.counts.add("leak", f"{[one.name for one in own]}: {text!r} says {', '.join(sorted(said - known))}")
