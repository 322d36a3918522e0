"""Questions with answers to choose from, asked the same way whichever data set they are of."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_uppercase


def asked(question: str, options: Sequence[str], hint: str = "") -> str:
    """A request for the letter of the right answer; options are lettered in their order."""
    lettered = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    return "\n".join([*([hint] if hint else []), question, *lettered, "Answer with the letter of the right option."])
