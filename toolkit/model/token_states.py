"""Streaming hidden states token by token, for methods that choose among the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import TypeVar

import torch
from torch import Tensor

from ...adapters.artifact.sites import Site
from ...adapters.errors import UsageError
from ...adapters.statistics.tokens import TokenBatch, whole
from ..data.ahead import PicturesAhead
from ..data.records import Record
from .asking import request_of
from .batching import BatchSize, counted, own_share, streamed
from .capture import USUAL, Reached, by_length, require_seen
from .running import Running

R = TypeVar("R")

_WITHOUT_POSITIONS = ("vision", "projector", "logits")


def stream_tokens(
    vlm: Running,
    records: Sequence[Record],
    sites: Sequence[Site],
    size: BatchSize,
    keep: Callable[[TokenBatch], R] = whole,  # type: ignore[assignment]
    *,
    with_response: bool = False,
) -> Iterator[R]:
    """Run records through the model and yield what is kept of the states of all positions, batch by batch.

    Records are batched by length. The forward pass stops at the deepest wanted site. Only one batch is held:
    batch · positions · sites · d_model floats.

    Args:
        size: of a batch, in records.
        keep: makes of a batch what is yielded; it is called where the batch was run.
        with_response: put each record's response after its prompt; its tokens are textual.

    Raises:
        UsageError: there are no records, or a site does not exist or has no prompt positions.
    """
    if not records or not sites:
        raise UsageError("There are no records or no sites to read states from.", "Check the split and the layers.")
    order = vlm.parts.sites()
    for site in sites:
        if site.kind in _WITHOUT_POSITIONS:
            raise UsageError(f"Site {site} has no hidden state per token.", "Use a site of a decoder layer.")
    taps = {site: vlm.parts.tap(site) for site in sites}
    deepest = max(sites, key=order.index)

    ordered = [unit[0] for unit in by_length([(record,) for record in records])]
    pictures = PicturesAhead(own_share(ordered, size, USUAL))

    def run(batch: Sequence[Record]) -> R:
        requests = [request_of(record, pictures, (record.response or "") if with_response else "") for record in batch]
        inputs = vlm.prepare(requests)
        mask, vision = torch.from_numpy(inputs.attention_mask).bool(), torch.from_numpy(inputs.vision_mask)
        seen: dict[Site, Tensor] = {}
        with ExitStack() as stack:
            for site in sites:
                hook = _reader(site, seen, stop=site == deepest)
                stack.callback(taps[site].read(hook).remove)
            with suppress(Reached):
                vlm.model(**vlm.arguments(inputs), use_cache=False)
        require_seen(vlm, sites, seen)
        return keep(TokenBatch(list(batch), seen, mask & vision, mask & ~vision))

    for _, kept in counted(streamed(ordered, size, USUAL, run), len(ordered), vlm.told):
        yield kept


def _reader(site: Site, seen: dict[Site, Tensor], stop: bool):
    def read(hidden: Tensor) -> None:
        seen[site] = hidden.float().cpu()
        if stop:
            raise Reached

    return read
