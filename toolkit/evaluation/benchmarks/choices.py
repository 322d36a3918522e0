"""Benchmarks with options to choose from: MMBench and ScienceQA."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .metric import Answered, Figures, grouped, metric, share

_OPTION = re.compile(r"^([A-Z])\. (.+)$", re.MULTILINE)  # of a request, as the importers ask
_ALONE = re.compile(r"^\W*([A-Za-z])\W*$|^\W*([A-Z])[.:)]\s")  # a letter alone, or one that opens the answer
_STATED = re.compile(r"\b(?:answer|option|choice)\s*(?:is|:)?\s*:?\s*\(?([A-Z])\b(?!')")


def chosen(prompt: str, text: str) -> str | None:
    """The letter of the option that an answer chooses; None where it chooses none or several.

    A letter alone, one that opens the answer (``B.``, ``(B) …``), one that is stated (``the answer is B``), or the only
    option whose words the answer holds.
    """
    options = dict(_OPTION.findall(prompt))
    stated = set(_STATED.findall(text))
    found = _ALONE.match(text)
    letter = (found[1] or found[2]).upper() if found else stated.pop() if len(stated) == 1 else None
    if letter is not None:
        return letter if letter in options else None
    said = [letter for letter, words in options.items() if re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.I)]
    return said[0] if len(said) == 1 else None


def _right(one: Answered) -> bool:
    return one.record.response is not None and chosen(one.record.prompt, one.text) == one.record.response


@metric("scienceqa")
def scienceqa(answered: Sequence[Answered]) -> tuple[Figures, str]:
    """Accuracy of all, per subject, per kind of context, and of grades 1 to 6 and 7 to 12."""
    found = {name: {"accuracy": share(map(_right, some))} for name, some in _by(answered).items()}
    return found, ""


def _by(answered: Sequence[Answered]) -> dict[str, list[Answered]]:
    groups = grouped(answered, lambda one: one.record.category)
    for one in answered:
        for tag in one.record.tags:
            if grade := re.fullmatch(r"grade(\d{1,2})", tag):
                tag = "grades 1–6" if int(grade[1]) <= 6 else "grades 7–12"
            elif not tag.startswith("context:"):
                continue
            groups.setdefault(tag, []).append(one)
    return groups


@metric("mmbench")
def mmbench(answered: Sequence[Answered]) -> tuple[Figures, str]:
    """CircularEval (arXiv:2307.06281): a question counts if it is right with its options turned every way.

    Beside it plain accuracy, over questions as they are asked first. The test part has no answers and no figures.
    """
    known = [one for one in answered if one.record.response is not None]
    if not known:
        return {}, "the records have no answers: its publishers keep those of the test part"
    found: Figures = {}
    torn = 0
    for name, some in grouped(known, lambda one: one.record.category).items():
        turned: dict[str, list[Answered]] = {}
        for one in some:
            turned.setdefault(one.record.group, []).append(one)
        whole = [
            members for members in turned.values() if len(members) == len(_OPTION.findall(members[0].record.prompt))
        ]
        torn = torn or len(turned) - len(whole)
        found[name] = {"circular accuracy": share(all(map(_right, members)) for members in whole)} if whole else {}
        first = [min(members, key=lambda one: int(one.record.id.rpartition("/")[2])) for members in turned.values()]
        found[name]["accuracy"] = share(map(_right, first))
    note = f"questions of which not every turn was answered, which count in accuracy alone: {torn}" if torn else ""
    return found, note
