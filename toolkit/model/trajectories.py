"""Streaming the states that a model passes through while it answers: after the prompt, and after each token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import takewhile

import torch
from torch import Tensor

from ...adapters.artifact.sites import Site
from ...adapters.protocols import Trajectories
from ...adapters.statistics.threads import one_thread
from ..data.ahead import PicturesAhead
from ..data.records import Record
from .asking import request_of
from .batching import BatchSize, counted, own_share, streamed
from .capture import USUAL, by_length
from .running import Stepping


def stream_trajectories(
    vlm: Stepping, records: Sequence[Record], sites: Sequence[Site], size: BatchSize, tokens: int
) -> Iterator[tuple[list[Record], Trajectories]]:
    """Answer records greedily and yield, batch by batch, the states of the last position at every call.

    Args:
        sites: block outputs, in the order in which their states stand beside each other.
        size: of a batch, in records.
        tokens: calls of an answer at most, the prompt's included.

    Raises:
        UsageError: a site does not exist.
    """
    taps = [vlm.parts.tap(site) for site in sites]
    ordered = [unit[0] for unit in by_length([(record,) for record in records])]
    pictures = PicturesAhead(own_share(ordered, size, USUAL))
    ends = torch.tensor(sorted(vlm.inputs.eos_token_ids))

    def run(batch: Sequence[Record]) -> Trajectories:
        seen: list[Tensor] = [torch.empty(0)] * len(taps)
        states: list[Tensor] = []
        said: list[Tensor] = []
        cache = vlm.empty_cache()
        with ExitStack() as stack:
            for at, tap in enumerate(taps):
                stack.callback(tap.read(_reader(seen, at)).remove)
            logits, inputs = vlm.prefill([request_of(one, pictures) for one in batch], cache)
            mask = torch.from_numpy(inputs.attention_mask).to(logits.device)
            lengths = torch.zeros(len(batch), dtype=torch.int64)
            going = torch.ones(len(batch), dtype=torch.bool)
            while True:
                states.append(torch.cat(seen, dim=1))
                lengths += going
                chosen = logits[:, -1:].argmax(-1)
                said.append(chosen[:, 0].cpu())
                going &= ~torch.isin(said[-1], ends)
                if not going.any() or len(states) == tokens:
                    break
                mask = torch.cat([mask, torch.ones_like(chosen)], dim=1)
                with one_thread(blas=False):  # products of one row are split among threads otherwise
                    logits = vlm.step(chosen, mask, cache)
        answers = torch.stack(said, dim=1).tolist()
        spoken = [list(takewhile(lambda token: token not in vlm.inputs.eos_token_ids, row)) for row in answers]
        texts = tuple(vlm.inputs.generation(row, {}).text for row in spoken)
        return Trajectories(torch.stack(states, dim=1), lengths, texts)

    with torch.inference_mode():
        yield from counted(streamed(ordered, size, USUAL, run), len(ordered), vlm.told)


def _reader(seen: list[Tensor], at: int) -> Callable[[Tensor], None]:
    def read(hidden: Tensor) -> None:
        seen[at] = hidden[:, -1].float().cpu()

    return read
