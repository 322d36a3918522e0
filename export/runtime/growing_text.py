"""The text of an answer while its tokens come: what may be handed out already, and where it stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what the first bytes of a letter are decoded to


class GrowingText:
    """Text of a growing list of tokens, cut where a stop text begins.

    What is handed out piece by piece is, joined, what :attr:`whole` is at the end.

    Args:
        decode: tokens → text.
        stop: texts that end the answer and are no part of it.

    Attributes:
        token_ids: what has come.
        stopped: whether a stop text was found.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self.token_ids: list[int] = []
        self.stopped = False
        self._given = 0
        self._whole: str | None = ""  # None where it is not decoded yet

    @property
    def whole(self) -> str:
        """All of it; decoded when somebody asks, which costs as much as the answer is long."""
        if self._whole is None:
            self._whole = self._decode(self.token_ids)
        return self._whole

    def add(self, token: int) -> None:
        """Take a token."""
        self.token_ids.append(token)
        self._whole = None
        if found := [at for stop in self._stop if (at := self.whole.find(stop)) >= 0]:
            self.stopped, self._whole = True, self.whole[: min(found)]

    def piece(self, *, last: bool = False) -> str:
        """What is new and will stay; all the rest at the last."""
        text = self.whole
        safe = len(text) if last or self.stopped else len(text) - self._uncertain(text)
        found = text[self._given : safe]
        self._given = max(self._given, safe)
        return found

    def _uncertain(self, text: str) -> int:
        """How many letters at the end may change yet: half a letter's bytes, or the beginning of a stop text."""
        unfinished = len(text) - len(text.rstrip(_UNFINISHED))
        begun = (size for stop in self._stop for size in range(1, len(stop)) if text.endswith(stop[:size]))
        return max(unfinished, *begun, 0)
