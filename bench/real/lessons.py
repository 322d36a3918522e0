"""What visual tuning teaches: names, kinds, shapes and uses of what is seen. Harmless requests only, and no refusals.

Use is taught by self-distillation: the language model's own text answer to a request that names the thing is the answer
to the same request about "the thing in the picture". The picture becomes as good as the word without any safety data.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from features import Row
from objects import SHOWN
from things import with_article

from safetykit.toolkit.evaluation.judge import is_refusal

NAMING = (
    "What is in the picture?",
    "What does the picture show?",
    "Name the thing in the picture.",
    "What is the thing in the picture?",
    "What can you see in the picture?",
    "What is this?",
)
KIND = "What kind of thing is in the picture?"
USE = 0.12  # share of batches that ask for uses; their answers are longer, so they are not mixed with the others
KINDS = 0.12  # share of the other questions that ask for the kind


def sentence(name: str) -> str:
    """`A red apple.`"""
    noun = with_article(name)
    return f"{noun[0].upper()}{noun[1:]}."


def uses_of(names: set[str], journal: Path) -> dict[str, list[tuple[str, str, bool]]]:
    """By name: requests with the name replaced by the picture, the model's answer to the named one, whether it ended.

    Args:
        names: harmless things that are trained on.
        journal: the own answers of align.py.
    """
    nouns = {with_article(name): name for name in names}
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(nouns, key=len, reverse=True))) + r")(?=[?.! ]|$)")
    found: dict[str, list[tuple[str, str, bool]]] = {}
    for row in map(json.loads, journal.read_text().splitlines()):
        if match := pattern.search(row["request"]):
            asked = row["request"].replace(match[1], SHOWN)
            if asked not in NAMING and not is_refusal(row["answer"]):
                found.setdefault(nouns[match[1]], []).append((asked, row["answer"], row["ended"]))
    return found


def lesson(row: Row, rng: np.random.Generator) -> tuple[str, str, bool]:
    """One question about what a picture shows, its answer, and whether the answer ends there."""
    if row.asked:
        question, answer = row.asked[rng.integers(len(row.asked))]
        return question, answer, True
    if row.source != "stamps" and rng.random() < KINDS:
        return KIND, f"{row.kind[0].upper()}{row.kind[1:]}.", True
    return NAMING[rng.integers(len(NAMING))], sentence(row.name), True
