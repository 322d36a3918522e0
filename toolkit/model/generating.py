"""How a model is asked, whichever runs it: PyTorch or ONNX Runtime. No torch is imported here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from .chat import Prompt, as_requests, is_one
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
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


class Generating:
    """A model that answers requests; a subclass says how, in :meth:`answered`."""

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
            UsageError: a request is none, its picture cannot be read, or a batch is to be streamed.
            InvalidArtifact: the detector's risk of a request is not a number.
        """
        sampling = Sampling(do_sample=do_sample, temperature=temperature, top_p=top_p, seed=seed)
        answers = self.answered(as_requests(requests), max_new_tokens, sampling, streamer)
        return answers[0] if is_one(requests) else answers
