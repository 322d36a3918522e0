"""Answers as OpenAI's interface has them, whole and in pieces, with the verdict in the extension ``safetykit``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .answer import Begun, Piece, TokenLogprob, Verdict
from .errors import ApiError

DONE = b"data: [DONE]\n\n"


@dataclass
class Choice:
    """One answer as far as it has come."""

    begun: Begun | None = None
    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: str | None = None
    tokens: int = 0


class Replies:
    """What is said in answer to one request.

    Args:
        identity: of the completion.
        created: seconds since 1970.
        model: as clients call it.
        fingerprint: of what answers.
        chosen: what the request chose to be answered by.
        token_text: a token's own text.
        logprobs: whether they were asked for.
    """

    def __init__(
        self,
        identity: str,
        created: int,
        model: str,
        fingerprint: str,
        chosen: Mapping[str, Any],
        token_text: Callable[[int], str],
        *,
        logprobs: bool,
    ) -> None:
        self._shared = {"id": identity, "created": created, "model": model, "system_fingerprint": fingerprint}
        self._chosen, self._token_text, self._logprobs = chosen, token_text, logprobs

    def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        """The completion."""
        return {
            **self._shared,
            "object": "chat.completion",
            "choices": [
                {
                    "index": at,
                    "message": {"role": "assistant", "content": one.text, "refusal": None},
                    "logprobs": self._told(one.logprobs),
                    "finish_reason": one.reason,
                }
                for at, one in enumerate(choices)
            ],
            "usage": usage(choices),
            "safetykit": self._verdict(choices[0]),
        }

    def begin(self, at: int, choice: Choice, *, with_usage: bool) -> bytes:
        """The first piece: whose turn it is, and the verdict."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self._event(at, delta, None, None, with_usage, {"safetykit": self._verdict(choice)})

    def piece(self, at: int, piece: Piece, *, with_usage: bool) -> bytes:
        """More text."""
        return self._event(at, {"content": piece.text}, self._told(piece.logprobs), None, with_usage)

    def end(self, at: int, choice: Choice, *, with_usage: bool) -> bytes:
        """The last piece of a choice: why it ends, and the verdict again."""
        return self._event(at, {}, None, choice.reason, with_usage, {"safetykit": self._verdict(choice)})

    def usage(self, choices: Sequence[Choice]) -> bytes:
        """The piece after the last, if usage was asked for."""
        return _sent({**self._shared, "object": "chat.completion.chunk", "choices": [], "usage": usage(choices)})

    def _event(
        self,
        at: int,
        delta: dict[str, Any],
        logprobs: Any,
        reason: str | None,
        with_usage: bool,
        more: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": at, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        body = {**self._shared, "object": "chat.completion.chunk", "choices": [choice], **(more or {})}
        return _sent({**body, "usage": None} if with_usage else body)

    def _verdict(self, choice: Choice) -> dict[str, Any]:
        assert choice.begun is not None
        return {**verdict_told(choice.begun.verdict), **self._chosen}

    def _told(self, found: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self._logprobs or not found:
            return {"content": [], "refusal": None} if self._logprobs else None
        content = [
            {
                **self._one(one.token, one.logprob),
                "top_logprobs": [self._one(token, logprob) for token, logprob in one.top],
            }
            for one in found
        ]
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def verdict_told(verdict: Verdict) -> dict[str, Any]:
    """The extension ``safetykit``: ``would_refuse`` in shadow mode only."""
    return {name: one for name, one in asdict(verdict).items() if name != "would_refuse" or one is not None}


def usage(choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens; the prompt counts once."""
    prompt = choices[0].begun.prompt_tokens if choices[0].begun else 0
    made = sum(one.tokens for one in choices)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def failure(error: ApiError) -> bytes:
    """An error after the first piece was sent."""
    return _sent(error.body)


def _sent(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
