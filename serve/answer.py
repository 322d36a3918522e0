"""One answer in the making: its tokens, verdict and text, told to whoever waits for it as they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from ..export.runtime.decoding import Decoding
from ..export.runtime.growing_text import GrowingText
from ..export.runtime.onnx_vlm import OnnxVLM
from ..export.runtime.sampling import Sampler
from ..toolkit.model.generating import Sampling
from ..toolkit.model.requests import Request
from .rows import Row

_SHORT = 255  # letters of a text; how much shorter one is does not matter
Reason = Literal["stop", "length", "content_filter"]


@dataclass(frozen=True)
class Verdict:
    """What adapters said of a prompt.

    Attributes:
        risk: log-odds of harm; None without a detector.
        threshold: above it the request is refused; None without a detector.
        refused: whether it was.
        gates: what the ops said, by ``<intervention>.<name>``; a gate is open above 0.
        would_refuse: in shadow mode, whether it would have been refused.
    """

    risk: float | None
    threshold: float | None
    refused: bool
    gates: dict[str, float]
    would_refuse: bool | None = None


@dataclass(frozen=True)
class Begun:
    """The prompt was read."""

    verdict: Verdict
    prompt_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token and what the model gave it, before temperature.

    Attributes:
        top: the most probable tokens at its place and their log-probabilities, best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """More of the text, and the tokens that came with it where they were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Ended:
    """The answer is complete."""

    reason: Reason
    tokens: int


@dataclass(frozen=True)
class Failed:
    """There is no (further) answer."""

    error: BaseException


Event = Begun | Piece | Ended | Failed


@dataclass(frozen=True)
class Wanted:
    """How a request wants its answers.

    Attributes:
        max_tokens: longest answer.
        stop: texts that end it.
        top_logprobs: how many log-probabilities are told for each place beside the token's own; None for none at all.
        shadow: a risk above the threshold is told and not acted on.
        pieces: the text is told as it comes, and not at the end only.
    """

    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    shadow: bool = False
    pieces: bool = True


class Answer(Row):
    """A row of a scheduler over an export.

    Args:
        model: the export.
        request: what is asked.
        wanted: how.
        tell: gets the events in their order, in the scheduler's thread.
    """

    def __init__(self, model: OnnxVLM, request: Request, wanted: Wanted, tell: Callable[[Event], None]) -> None:
        self.request, self._wanted, self._tell = request, wanted, tell
        self._model, self._sampler = model, Sampler(wanted.sampling)
        self._text = GrowingText(model.inputs.decode, wanted.stop)
        self._logprobs: list[TokenLogprob] = []  # not told yet
        self._begun = False
        self._most = wanted.max_tokens
        self.kind = (len(request.pictures), max(_SHORT, len(request.said)).bit_length())

    @property
    def written(self) -> int:
        """Tokens so far; from any thread."""
        return len(self._text.token_ids)

    def advance(self, state: Decoding, at: int) -> int | None:
        """See :meth:`Row.advance`."""
        if not self._begun and self._refuses(state, at):
            return None
        logits = state.logits[at : at + 1, -1]
        drawn = self._wanted.sampling.do_sample
        token = int(self._sampler.choose(logits)[0] if drawn else state.best[at])
        if token in self._model.inputs.eos_token_ids:
            self._end("stop")
            return None
        self._text.add(token)
        if self._wanted.top_logprobs is not None:
            self._logprobs.append(_logprob(logits[0], token, self._wanted.top_logprobs))
        if self._text.stopped:
            self._end("stop")
            return None
        if len(self._text.token_ids) >= self._most:
            self._end("length")
            return None
        if self._wanted.pieces:
            self._say(self._text.piece())
        return token

    def failed(self, error: BaseException) -> None:
        """See :meth:`Row.failed`."""
        self._tell(Failed(error))

    def _refuses(self, state: Decoding, at: int) -> bool:
        """Tell what the prompt led to, and end the answer if that is the detector's refusal."""
        self._begun = True
        model, detector = self._model, self._model.detector
        scores = {name: float(value[at]) for name, value in model.scores_of(state).items()}
        prompt = int(state.attention_mask[at].sum())
        if model.inputs.most_tokens is not None:
            self._most = max(1, min(self._most, model.inputs.most_tokens - prompt))
        if detector is None:
            self._tell(Begun(Verdict(None, None, False, scores), prompt))
            return False
        made = model.inputs.generation((), scores, detector.refusal)  # refuses a risk that is no number
        refused = made.refused and not self._wanted.shadow
        risk = scores.pop("risk") + detector.threshold
        would = made.refused if self._wanted.shadow else None
        self._tell(Begun(Verdict(risk, detector.threshold, refused, scores, would), prompt))
        if refused:
            self._tell(Piece(made.text))
            self._tell(Ended("content_filter", len(made.token_ids)))
        return refused

    def _say(self, text: str) -> None:
        if text or self._logprobs:
            self._tell(Piece(text, tuple(self._logprobs)))
            self._logprobs.clear()

    def _end(self, reason: Reason) -> None:
        self._say(self._text.piece(last=True))
        self._tell(Ended(reason, len(self._text.token_ids)))


def _logprob(logits: Float[np.ndarray, " vocab"], token: int, top: int) -> TokenLogprob:
    wide = logits.astype(np.float64)
    logprobs = wide - wide.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    best = np.argsort(-logprobs, kind="stable")[:top]
    return TokenLogprob(token, float(logprobs[token]), tuple((int(one), float(logprobs[one])) for one in best))
