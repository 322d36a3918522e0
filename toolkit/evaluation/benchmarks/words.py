"""TextVQA: short answers, compared with those of ten people."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..result import Figure
from .metric import Answered, Figures, metric

_NUMBERS = {
    word: str(at)
    for at, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_MARKS = ';/[]"{}()=+\\_-><@`!'
_STEMS = (  # of contractions with "not", which people write without the apostrophe, too
    *("aren", "can", "couldn", "didn", "doesn", "don", "hadn", "hasn", "haven", "isn", "mightn", "mustn", "needn"),
    *("shan", "shouldn", "wasn", "weren", "won", "wouldn"),
)
_CONTRACTED = {f"{stem}t": f"{stem}'t" for stem in _STEMS} | {
    "im": "i'm", "ive": "i've", "youre": "you're", "youve": "you've", "theyre": "they're", "theyve": "they've",
    "weve": "we've", "hes": "he's", "shes": "she's", "thats": "that's", "theres": "there's", "whats": "what's",
    "whos": "who's", "wheres": "where's", "hows": "how's", "lets": "let's", "yall": "y'all", "oclock": "o'clock",
}  # fmt: skip


def normalised(text: str) -> str:
    """An answer as the evaluation of TextVQA compares it.

    Small letters; no comma, no question mark, no full stop but before a digit; ``'s`` is a word. A mark goes if it has
    a space beside it anywhere, and is a space otherwise. Numbers up to ten are digits, articles go, and contractions
    get their apostrophes.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = found = text.replace("\n", " ").replace("\t", " ").strip()
    for mark in _MARKS:
        found = found.replace(mark, "" if f"{mark} " in text or f" {mark}" in text else " ")
    found = re.sub(r"\.(?!\d)", "", found)
    words = (_NUMBERS.get(word, word) for word in found.split())
    return " ".join(_CONTRACTED.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(text: str, answers: Sequence[str]) -> float:
    """The mean over the people of min(1, others who gave this answer / 3), the people left out one by one."""
    given, wanted = [normalised(one) for one in answers], normalised(text)
    equal = [one == wanted for one in given]
    return sum(min(1.0, (sum(equal) - mine) / 3) for mine in equal) / len(equal)


@metric("textvqa")
def textvqa(answered: Sequence[Answered]) -> tuple[Figures, str]:
    """VQA accuracy (arXiv:1904.08920)."""
    known = [one for one in answered if one.record.answers]
    if not known:
        return {}, "the records hold no people's answers: import the set again"
    found = [soft_accuracy(one.text, one.record.answers) for one in known]
    without = len(answered) - len(known)
    note = f"records without people's answers, left out: {without}" if without else ""
    return {"all": {"VQA accuracy": Figure(value=sum(found) / len(found), n=len(found))}}, note
