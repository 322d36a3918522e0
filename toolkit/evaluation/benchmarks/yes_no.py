"""Benchmarks whose answers are yes or no: POPE, MME, Hateful Memes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from ..rates import auroc
from ..result import Figure
from .metric import Answered, Figures, grouped, metric, share

# The subtasks of MME (arXiv:2306.13394) by the kind of ability; their sums are the benchmark's two scores.
PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

YesNo = Literal["yes", "no"]


def by_pope(text: str) -> YesNo:
    """As POPE's evaluate.py does: no if ``No``, ``no`` or ``not`` is a word of the first sentence, else yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def by_mme(text: str) -> YesNo | None:
    """As MME's calculation.py does: by the first four letters, else neither."""
    opening = text.lower().strip()[:4]
    return "yes" if "yes" in opening else "no" if "no" in opening else None


def first_word(text: str) -> YesNo | None:
    """Yes or no if that is the first word."""
    found = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return None if found is None else "yes" if found[1].lower() == "yes" else "no"


@metric("pope")
def pope(answered: Sequence[Answered]) -> tuple[Figures, str]:
    """Accuracy, precision, recall and F1 of ``yes`` and the share of ``yes``; of all, and by how things were chosen."""
    groups = grouped(answered, lambda one: one.record.category)
    return {name: _of_yes([(_expected(one), by_pope(one.text)) for one in some]) for name, some in groups.items()}, ""


def _of_yes(pairs: Sequence[tuple[str | None, str]]) -> dict[str, Figure]:
    n = len(pairs)
    hits = sum(said == "yes" == right for right, said in pairs)
    said_yes, is_yes = sum(said == "yes" for _, said in pairs), sum(right == "yes" for right, _ in pairs)
    found = {"accuracy": share(right == said for right, said in pairs)}
    if said_yes:
        found["precision"] = Figure.share(hits, said_yes)
    if is_yes:
        found["recall"] = Figure.share(hits, is_yes)
    if said_yes + is_yes:
        found["F1"] = Figure(value=2 * hits / (said_yes + is_yes), n=n)
    return found | {"yes ratio": Figure.share(said_yes, n)}


@metric("mme")
def mme(answered: Sequence[Answered]) -> tuple[Figures, str]:
    """Per subtask accuracy, accuracy+ (both questions of a picture right) and their sum in percent, at most 200.

    ``perception`` and ``cognition`` are the sums over their subtasks, at most 2000 and 800.
    """
    tasks: dict[str, list[Answered]] = {}
    for one in answered:
        tasks.setdefault(one.record.category, []).append(one)
    found: Figures = {"all": {}}
    found |= {name: _mme_of(some) for name, some in sorted(tasks.items())}
    missing = [name for name in (*PERCEPTION, *COGNITION) if name not in tasks]
    odd = sum(len(pair) != 2 for some in tasks.values() for pair in _pairs(some).values())
    for title, names in (("perception", PERCEPTION), ("cognition", COGNITION)):
        there = [name for name in names if name in tasks]
        if there:
            total = sum(found[name]["score"].value for name in there)
            found["all"][title] = Figure(value=total, n=sum(len(tasks[name]) for name in there))
    notes = [f"subtasks without a record: {', '.join(missing)}"] if missing else []
    notes += [f"pictures without both questions, which count in accuracy alone: {odd}"] if odd else []
    return found, "; ".join(notes)


def _mme_of(answered: Sequence[Answered]) -> dict[str, Figure]:
    right = {one.record.id: by_mme(one.text) == _expected(one) for one in answered}
    found = {"accuracy": share(right.values())}
    pairs = [pair for pair in _pairs(answered).values() if len(pair) == 2]
    score = found["accuracy"].value
    if pairs:
        found["accuracy+"] = share(all(right[one.record.id] for one in pair) for pair in pairs)
        score += found["accuracy+"].value
    return found | {"score": Figure(value=100 * score, n=len(answered))}


def _pairs(answered: Sequence[Answered]) -> dict[str, list[Answered]]:
    found: dict[str, list[Answered]] = {}
    for one in answered:
        found.setdefault(one.record.group, []).append(one)
    return found


@metric("hateful-memes")
def hateful_memes(answered: Sequence[Answered]) -> tuple[Figures, str]:
    """AUROC of a detector's risk, and accuracy of answers that say yes or no to whether a meme is hateful."""
    found: dict[str, Figure] = {}
    labels = [one.record.label == "harmful" for one in answered]
    if len(set(labels)) == 2 and all(one.scores and "risk" in one.scores for one in answered):
        risks = [(one.scores or {})["risk"] for one in answered]
        found["AUROC"] = Figure(value=auroc(labels, risks), n=len(labels))
    said = [first_word(one.text) for one in answered]
    if any(said):
        pairs = zip(labels, said, strict=True)
        found["accuracy"] = share(one == ("yes" if label else "no") for label, one in pairs)
        return {"all": found}, f"answers that say neither yes nor no, counted as wrong: {said.count(None)}"
    note = "no answer says yes or no: ask whether the meme is hateful, by `data import --prompt`"
    return {"all": found} if found else {}, note


def _expected(one: Answered) -> str | None:
    return None if one.record.response is None else one.record.response.lower()
