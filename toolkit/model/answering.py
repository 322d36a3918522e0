"""Answering requests with a transformers model, and with what adapters make of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Protocol

import torch

from .hooks import AppliedAdapters
from .inputs import InputProcessor
from .requests import Generation, Request
from .running import Running
from .streaming import AnswerStream, Streamer, require_one


class Answering(Running, Protocol):
    """A VLM that can answer (``toolkit.VLM``)."""

    inputs: InputProcessor

    def fill_references(self, requests: Sequence[Request]) -> None:
        """Give ops that ask for it the text-only state of the same query."""
        ...


def answer(
    vlm: Answering,
    requests: Sequence[Request],
    hooks: AppliedAdapters | None,
    max_new_tokens: int,
    *,
    seed: int,
    streamer: Streamer | None,
    **sampling: Any,
) -> list[Generation]:
    """Answer a batch; see :meth:`VLM.generate`.

    Args:
        hooks: the adapters that are applied.
        sampling: arguments of transformers' ``generate``.
    """
    vlm.fill_references(requests)
    processor = vlm.inputs
    inputs = vlm.prepare(requests)
    arguments = vlm.arguments(inputs, cached_features=False)
    arguments.pop("position_ids", None)  # transformers' generate derives them from the mask itself
    detector = hooks.detector if hooks else None
    if streamer is not None:
        require_one(requests)
        sampling["streamer"] = AnswerStream(
            streamer,
            processor.eos_token_ids,
            (lambda: hooks.margin.item()) if detector else None,
            processor.tokens_of(detector.refusal) if detector else (),
            torch.tensor,
        )
    torch.manual_seed(seed)
    output = vlm.model.generate(
        **arguments,
        max_new_tokens=max_new_tokens,
        pad_token_id=processor.pad_token_id,
        eos_token_id=list(processor.eos_token_ids),
        # a row that is refused counts as finished after its first token; a batch of such rows ends there
        stopping_criteria=[lambda *_, **__: hooks.margin > 0] if detector else [],
        **sampling,
    )
    extras = dict(hooks.extras) if hooks else {}
    if detector:
        extras["risk"] = hooks.margin
    scores = {name: value.float().cpu() for name, value in extras.items() if value.ndim == 1}
    refusal = detector.refusal if detector else None
    ends = set(processor.eos_token_ids)
    return [
        processor.generation(
            list(takewhile(lambda token: token not in ends, tokens)),
            {name: value[row].item() for name, value in scores.items()},
            refusal,
        )
        for row, tokens in enumerate(output[:, inputs.input_ids.shape[1] :].cpu().tolist())
    ]
