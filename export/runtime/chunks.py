"""Prompts that are read in several calls, each with some of their tokens, as engines do to bound their memory.

A graph takes a call of several tokens for a part of a prompt, and one of a single token after others for the answer, so
no chunk but a prompt's first is a single token. What an adapter decides by the last position of a prompt, and then does
to the positions before it, cannot be done so, nor can attention to later positions; :func:`why_whole` says which.

Rows are read one after the other, without their padding, and then joined: attention of one node a layer continues one
row only, and a row's chunks are the same whatever stands beside it.

Works on NumPy arrays and does not use torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ...adapters.errors import UsageError
from ...toolkit.families.family import Family
from ...toolkit.model.requests import Inputs
from ..manifest import ExportManifest
from .batches import Axes, gathered
from .decoding import Decoding

LEAST = 3  # tokens of a chunk, so that the one before a last token can give one up


class Prompts(NamedTuple):
    """What a decoder is fed of prompts; ``further`` by the names of its inputs."""

    embeds: Float[np.ndarray, "batch seq d_model"]
    mask: Int[np.ndarray, "batch seq"]
    vision_mask: Bool[np.ndarray, "batch seq"]
    further: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, inputs: Inputs, embeds: np.ndarray, further: Mapping[str, np.ndarray]) -> Prompts:
        """A batch whose embeddings and further inputs are known.

        Raises:
            UsageError: it is padded elsewhere than on the left: what decides reads the last position.
        """
        mask = inputs.attention_mask
        if not mask[:, -1].all() or (np.diff(mask, axis=1) < 0).any():
            raise UsageError("A row of the batch has padding inside or on its right.", "Pad on the left.")
        return cls(embeds, mask, inputs.vision_mask, further)

    def row(self, at: int, axes: Axes) -> Prompts:
        """One of them, without its padding."""
        pad, alone = int(self.mask[at].argmax()), slice(at, at + 1)
        cut = {"batch": alone, "sequence": slice(pad, None), "total": slice(pad, None)}
        further = {name: _cut(value, axes[name], cut) for name, value in self.further.items()}
        return Prompts(self.embeds[alone, pad:], self.mask[alone, pad:], self.vision_mask[alone, pad:], further)

    def chunk(self, start: int, stop: int, axes: Axes) -> Prompts:
        """The tokens from ``start`` to ``stop``; the mask is over all up to there."""
        new = slice(start, stop)
        cut = {"sequence": new, "total": slice(None, stop)}
        further = {name: _cut(value, axes[name], cut) for name, value in self.further.items()}
        return Prompts(self.embeds[:, new], self.mask[:, :stop], self.vision_mask[:, new], further)


def why_whole(manifest: ExportManifest, family: Family) -> str | None:
    """Why an export's prompts must be read in one call each; None if they may come in chunks."""
    if family.token_types is not None:
        return f"tokens of a prompt see later ones in this family ({family.title})"
    if manifest.foreign is not None and not manifest.foreign.continues:
        return "the decoder takes one token at a time after the first call"
    return manifest.whole_prompt if manifest.adapters else None


def spans(length: int, most: int) -> Iterator[tuple[int, int]]:
    """Where chunks of at most ``most`` tokens begin and end; only the first may be a single token."""
    start = 0
    while start < length:
        stop = min(start + most, length)
        if length - stop == 1:
            stop -= 1
        yield start, stop
        start = stop


def read_in_chunks(
    read: Callable[[Prompts, Mapping[str, np.ndarray] | None], Decoding],
    prompts: Prompts,
    most: int,
    axes: Axes,
    first: bool,
    *,
    all_logits: bool = False,
) -> Decoding:
    """The state after prompts, as of one call.

    Args:
        read: one call of the decoder on a chunk and the cache of what came before; None for nothing.
        most: tokens of a chunk, :data:`LEAST` or more.
        axes: names of the axes of the decoder's further inputs.
        first: see :func:`.batches.tokens_first`.
        all_logits: keep the logits of all positions.
    """
    rows = []
    for at in range(len(prompts.mask)):
        row, past, logits = prompts.row(at, axes), None, []
        for start, stop in spans(row.mask.shape[1], most):
            state = read(row.chunk(start, stop, axes), past)
            past = state.past
            logits.append(state.logits)
        whole = np.concatenate(logits, axis=1) if all_logits else state.logits[:, -1:]
        rows.append(replace(state, logits=whole, further=dict(row.further)))
    joined = gathered([(row, [0]) for row in rows], axes, first=first)
    length = max(row.logits.shape[1] for row in rows)
    padded = [np.pad(row.logits, [(0, 0), (length - row.logits.shape[1], 0), (0, 0)]) for row in rows]
    together = {name: np.concatenate([row.extras[name] for row in rows]) for name in rows[0].extras}
    return replace(joined, logits=np.concatenate(padded), extras=together, scores=together)


def _cut(value: np.ndarray, axes: Sequence[int | str], cut: Mapping[str, slice]) -> np.ndarray:
    return value[tuple(cut.get(str(axis), slice(None)) for axis in axes)]
