"""What users write stays text: special tokens in it are no tokens.

A tokenizer finds its special tokens wherever they stand. A prompt that holds ``<pad>`` or ``<image>`` would be read as
control tokens, and whoever writes it would decide what a gate or a detector sees at the last position. So special
tokens in what users write are *broken*: :data:`BREAK` stands behind their first character, a code point that Unicode
keeps for programs and that no text holds. Neither chat template nor processor nor tokenizer knows the token then, and a
copy of the tokenizer drops the break where it splits words, so that no word of its vocabulary spans it.

Text without special tokens is left alone and gives the tokens it always gave.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from ...adapters.errors import UsageError
from .requests import Request, Turn

BREAK = "\ufdd0"

Render = Callable[[Request], str]


class PlainText:
    """Breaks the special tokens of a processor's tokenizer in what users write.

    Attributes:
        special: texts of the special tokens and of what the processor replaces by a picture, longest first.
    """

    def __init__(self, processor: Any) -> None:
        """Read the special tokens of a transformers processor, which is not changed."""
        tokenizer = processor.tokenizer
        added = {at: one.content for at, one in tokenizer.added_tokens_decoder.items() if one.special}
        media = {value for name, value in vars(processor).items() if name.endswith("_token") and isinstance(value, str)}
        found = {*added.values(), *tokenizer.all_special_tokens, *media}
        self.special: tuple[str, ...] = tuple(sorted((one for one in found if len(one) > 1), key=len, reverse=True))
        self._ids = {*added, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}  # a broken word may be unknown
        self._media = tuple(sorted(media))
        self._ends = {end for one in self.special for end in (one[0], one[-1])} | {BREAK}
        self._processor = processor

    def guarded(self, request: Request, render: Render) -> Request:
        """The request with special tokens in its texts broken; itself if it holds none.

        What makes special tokens is seen in the tokens of the rendered prompt: they must be those of the same
        conversation with other words. So parts that make one together, and spellings that the tokenizer normalises to
        one, are found too.

        Args:
            render: a request in the chat template.

        Raises:
            UsageError: whatever is done, the template makes special tokens of the text.
        """
        said = request.said
        if self._ends.isdisjoint(said):
            return request
        wanted = self._count(self._processor, render(_changed(request, lambda text: "x" if text.strip() else text)))
        named = BREAK in said or any(token in said for token in self.special)
        if not named and self._count(self._processor, render(request)) == wanted:
            return request
        for way in (self.broken, _scattered):
            made = _changed(request, way)
            if self._count(self.reader, render(made)) == wanted:
                return made
        raise UsageError(
            "The chat template makes special tokens of what this request says.", "Ask in other words, without tags."
        )

    def broken(self, text: str) -> str:
        """The text with a break in every special token."""
        text = text.replace(BREAK, "")
        for token in self.special:
            text = text.replace(token, f"{token[0]}{BREAK}{token[1:]}")
        return text

    @cached_property
    def reader(self) -> Any:
        """The processor with a tokenizer that drops breaks; a copy, made when it is first needed.

        Raises:
            UsageError: the tokenizer is not one of the library ``tokenizers``.
        """
        return _reader(self._processor)

    def _count(self, processor: Any, prompt: str) -> Counter[int | str]:
        ids = processor.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        found: Counter[int | str] = Counter(one for one in ids if one in self._ids)
        return found + Counter({token: prompt.count(token) for token in self._media})


def _reader(processor: Any) -> Any:
    from tokenizers.pre_tokenizers import Sequence, Split

    if getattr(processor.tokenizer, "backend_tokenizer", None) is None:
        raise UsageError(
            "A request holds special tokens, and this model's tokenizer cannot read them as text.",
            "Take them out, or save the checkpoint with a fast tokenizer (tokenizer.json).",
        )
    tokenizer = copy.deepcopy(processor.tokenizer)
    backend, drop = tokenizer.backend_tokenizer, Split(BREAK, "removed")
    backend.pre_tokenizer = Sequence([drop, backend.pre_tokenizer]) if backend.pre_tokenizer else drop
    made = copy.copy(processor)
    made.tokenizer = tokenizer
    return made


def _scattered(text: str) -> str:
    """A break between all characters."""
    return BREAK.join(text.replace(BREAK, ""))


def _changed(request: Request, way: Callable[[str], str]) -> Request:
    turns = tuple(
        Turn(turn.role, tuple(way(part) if isinstance(part, str) else part for part in turn.content))
        for turn in request.turns
    )
    return replace(
        request,
        prompt=turns[-1].text if turns else way(request.prompt),
        answer=way(request.answer),
        retrieved=request.retrieved and tuple(map(way, request.retrieved)),
        system=way(request.system),
        turns=turns,
    )
