"""Streaming hidden states: nothing that grows with the number of records is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...adapters.artifact.sites import Site
from ...adapters.errors import UsageError
from ...adapters.protocols import Pool
from ..data.ahead import PicturesAhead
from ..data.records import Record
from .asking import request_of
from .batching import BatchSize, counted, own_share, streamed
from .running import Running

USUAL = 32  # records at once


class Reached(Exception):
    """The deepest wanted site has been seen; the rest of the forward pass is not needed."""


def capture(
    vlm: Running, units: Sequence[Sequence[Record]], sites: Sequence[Site], pool: Pool, size: BatchSize
) -> Iterator[tuple[list[Record], dict[Site, Float[Tensor, "batch d_model"]]]]:
    """Run records through the model and yield pooled hidden states batch by batch.

    Records are batched by length to waste little padding; those of one unit stay together. The
    forward pass stops at the deepest wanted site.

    Args:
        units: groups of records, usually pairs or single ones.
        pool: ``last`` prompt position, or the mean over all, ``vision`` or ``text`` tokens.
        size: of a batch, in records.

    Yields:
        The records of a batch, and per site their states [batch, d_model] in float32 on the CPU.

    Raises:
        UsageError: there are no records, or a site does not exist.
    """
    if not units or not sites:
        raise UsageError("There are no records or no sites to read states from.", "Check the split and the layers.")
    order = vlm.parts.sites()
    taps = {site: vlm.parts.tap(site) for site in sites}
    deepest = max(sites, key=order.index)
    cached = not any(site.kind in ("vision", "projector") for site in sites)
    if not cached and vlm.parts.family.repacks:
        raise UsageError(
            f"{type(vlm.model).__name__} rearranges its image features after the projector, so that states there "
            "belong to no record.",
            "Use a site of a decoder layer.",
        )

    ordered = by_length(units)
    pictures = PicturesAhead(record for unit in own_share(ordered, size, USUAL, len) for record in unit)

    def run(some: Sequence[Sequence[Record]]) -> dict[Site, Tensor]:
        inputs = vlm.prepare([request_of(record, pictures) for unit in some for record in unit])
        mask = torch.from_numpy(inputs.attention_mask).bool()
        vision = torch.from_numpy(inputs.vision_mask)
        weights = _pool_weights(mask, vision, pool)
        counts = [count for count in vision.sum(1).tolist() if count]
        seen: dict[Site, Tensor] = {}
        with ExitStack() as stack:
            for site in sites:
                hook = _reader(site, seen, weights, counts, stop=site == deepest)
                stack.callback(taps[site].read(hook).remove)
            with suppress(Reached):
                vlm.model(**vlm.arguments(inputs, cached_features=cached), use_cache=False)
        require_seen(vlm, sites, seen)
        return seen

    batches = streamed(ordered, size, USUAL, run, rows=len)
    for some, seen in counted(batches, sum(map(len, ordered)), vlm.told, rows=len):
        yield [record for unit in some for record in unit], seen


def require_seen(vlm: Running, sites: Sequence[Site], seen: Mapping[Site, Tensor]) -> None:
    """Refuse sites that a batch did not pass: blocks that attend to pictures are left out where there are none.

    Raises:
        UsageError: naming the first.
    """
    if (missed := next((site for site in sites if site.layer is not None and site not in seen), None)) is not None:
        raise UsageError(
            f"{type(vlm.model).__name__} leaves out {missed} where a prompt has no picture.", "Use another layer."
        )


def by_length(units: Sequence[Sequence[Record]]) -> list[Sequence[Record]]:
    """Units in an order that wastes little padding, those without pictures first.

    Pictures are read stretch by stretch of their files.
    """

    def length(unit: Sequence[Record]) -> tuple[bool, int, int]:
        pictured = any(record.pictured for record in unit)
        return pictured, max(record.stretch for record in unit), max(record.length for record in unit)

    return sorted(units, key=length)


def _pool_weights(
    mask: Bool[Tensor, "batch seq"], vision: Bool[Tensor, "batch seq"], pool: Pool
) -> Float[Tensor, "batch seq"]:
    """Weights that sum to 1 over the pooled tokens; rows without such tokens get zeros."""
    if pool == "last":
        chosen = torch.zeros_like(mask)
        chosen[:, -1] = True
    else:
        chosen = mask & {"mean": mask, "vision": vision, "text": ~vision}[pool]
    weights = chosen.float()
    return weights / weights.sum(1, keepdim=True).clamp_min(1)


def _reader(site: Site, seen: dict[Site, Tensor], weights: Tensor, counts: Sequence[int], stop: bool):
    def read(state: Tensor) -> None:
        hidden = state.float()
        shares = weights.to(hidden.device)
        if site.kind in ("vision", "projector"):
            pooled = _picture_means(hidden, counts)
        else:
            pooled = (hidden * shares[..., None]).sum(1)
        seen[site] = pooled.cpu()
        if stop:
            raise Reached

    return read


def _picture_means(hidden: Float[Tensor, "... d"], counts: Sequence[int]) -> Float[Tensor, "records d"]:
    """Means over the pictures of each record that has any: image features have no prompt positions.

    Tokens lie in the order of the records; before a projector that merges them there are more by a whole factor.

    Raises:
        UsageError: the tokens are not those that the decoder reads.
    """
    tokens = hidden.reshape(-1, hidden.shape[-1])
    factor, left = divmod(len(tokens), max(sum(counts), 1))
    if left or not factor:
        raise UsageError(
            f"{len(tokens)} states of pictures do not belong to {sum(counts)} image tokens one by one.",
            "This model rearranges its image features; use a site of a decoder layer.",
        )
    return torch.stack([part.mean(0) for part in tokens.split([factor * count for count in counts])])
