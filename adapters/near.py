"""What somebody may have meant who misspelt a name; with nothing of safetykit, so that every room can ask."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

_LIKENESS = 0.65  # twice the letters in common over all letters: `cash` for `cache` counts, `fp8` for `fp16` does not
_BEGUN = 3  # letters


def nearest(wrong: str, known: Sequence[str]) -> str | None:
    """The one of ``known`` that ``wrong`` misspells, whatever its capitals; None where none is like it."""
    folded = {one.casefold(): one for one in known}
    near = get_close_matches(wrong.casefold(), folded, n=1, cutoff=_LIKENESS)
    if not near:  # `visual` for `vision`: the only one that begins alike
        near = [one for one in folded if _begins_alike(one, wrong.casefold())]
    return folded[near[0]] if len(near) == 1 else None


def _begins_alike(one: str, other: str) -> bool:
    begun = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return begun >= _BEGUN and 2 * begun >= max(len(one), len(other))


def did_you_mean(wrong: str, known: Sequence[str]) -> str:
    """``Did you mean 'export'?``, or an empty text."""
    near = nearest(wrong, known)
    return f"Did you mean {near!r}?" if near is not None else ""
