"""How a model is asked, whichever runs it: PyTorch or ONNX Runtime. No torch is imported here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from ...adapters.errors import BatchRefused, RequestRefused, SafetykitError, UsageError
from ...adapters.ranges import require_seed
from .chat import Prompt, as_requests, is_one
from .inputs import InputProcessor
from .requests import Generation, Request
from .streaming import Streamer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: greedily, or by draws that a seed makes repeatable.

    Attributes:
        do_sample: draw; otherwise the most probable token is taken.
        temperature: divides the logits; above 0.
        top_p: draw among the fewest tokens whose probabilities reach this sum, in (0, 1].
        seed: of the random generator.

    Raises:
        UsageError: temperature, top-p or seed out of range, or no number.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise UsageError(
                f"Temperature {self.temperature} or top-p {self.top_p} is out of range.",
                "Temperature is a number above 0 and top-p in (0, 1]; leave out sampling for the greedy answer.",
            )
        require_seed(self.seed)


class Generating:
    """A model that answers requests; a subclass says how, in :meth:`answered`.

    Attributes:
        inputs: prepares them.
    """

    inputs: InputProcessor

    def answered(
        self, requests: Sequence[Request], max_new_tokens: int, sampling: Sampling, streamer: Streamer | None
    ) -> list[Generation]:
        """The answers to a batch."""
        raise NotImplementedError

    @overload
    def generate(  # type: ignore[overload-overlap]  # the messages of a chat are one prompt, not a list of them
        self,
        requests: Prompt,
        max_new_tokens: int = 32,
        *,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        streamer: Streamer | None = None,
    ) -> Generation: ...

    @overload
    def generate(
        self,
        requests: Sequence[Prompt],
        max_new_tokens: int = 32,
        *,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        streamer: Streamer | None = None,
    ) -> list[Generation]: ...

    def generate(
        self,
        requests: Prompt | Sequence[Prompt],
        max_new_tokens: int = 32,
        *,
        do_sample: bool = False,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        streamer: Streamer | None = None,
    ) -> Generation | list[Generation]:
        """Answer a request, or a batch of them, with the adapters that are applied or in the export.

        Greedy unless ``do_sample``; ``seed`` then fixes the draws. Requests that a detector refuses end with the
        prefill; the others are answered as if those were still there.

        Args:
            requests: a string, a :class:`Request` or the messages of a chat; or a list of these.
            streamer: gets the prompt's token ids [1, seq] and then the answer's as they come, for a single request, as
                with transformers' ``generate`` (of an export, as NumPy arrays); of an answer that a detector refuses,
                the refusal only.

        Returns:
            The answer; for a list, one each.

        Raises:
            UsageError: a request is none, its picture cannot be read, a batch is to be streamed, or an answer would be
                longer than the model takes.
            RequestRefused: a single request is too long, or model or processor cannot take it.
            BatchRefused: some of several cannot be answered so; the answers to the others are in the error.
            InvalidArtifact: the detector's risk of a request is not a number.
        """
        sampling = Sampling(do_sample=do_sample, temperature=temperature, top_p=top_p, seed=seed)
        asked = as_requests(requests)
        if self.inputs.most_tokens is not None and max_new_tokens > self.inputs.most_tokens:
            raise UsageError(
                f"An answer cannot have up to {max_new_tokens:,} tokens: the model takes {self.inputs.most_tokens:,}.",
                "Ask for fewer new tokens.",
            )
        try:
            answers = self.answered(asked, max_new_tokens, sampling, streamer)
        except RequestRefused:
            refused = self._refused(asked)
            if len(asked) == 1 or not refused:
                raise
            kept = [one for at, one in enumerate(asked) if at not in refused]
            made = iter(self.answered(kept, max_new_tokens, sampling, streamer) if kept else ())
            raise BatchRefused(refused, [None if at in refused else next(made) for at in range(len(asked))]) from None
        return answers[0] if is_one(requests) else answers

    def _refused(self, requests: Sequence[Request]) -> dict[int, RequestRefused]:
        """What is wrong with the requests that cannot be prepared, by their places."""
        found = {}
        for at, one in enumerate(requests):
            try:
                self.inputs.prepare([one])
            except SafetykitError as error:
                reason = error.reason if isinstance(error, RequestRefused) else error
                found[at] = RequestRefused(at, len(requests), one.prompt, reason)
        return found
