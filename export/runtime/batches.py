"""Rows that join and leave a batch while it decodes.

A batch in the middle of decoding is one :class:`~.graphs.Decoding`. Batches are joined on their right ends: the shorter
one gets padding on its left, which no row attends to, as prompts of different lengths have from the start. Rows that
leave take the padding with them that only they made necessary. So a row's tokens are those that it gets alone; its
logits differ by what float32 sums in another order.

The KV cache has its padding where the mask has it, or, of decoders whose attention is ``GroupQueryAttention``, behind
the row's tokens. Graphs do not say which; :func:`tokens_first` finds out.

On a device the cache is brought back when rows join or leave, and stays there in the steps between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int

from ...toolkit.model.requests import Inputs
from ..names import TOKEN_TYPES, is_state
from .binding import as_array
from .decoding import Decoding

Axes = Mapping[str, Sequence[int | str]]  # what the axes of the decoder's further inputs are called
Part = tuple[Decoding, Sequence[int]]  # a batch and the places of some of its rows
_LENGTH = 2  # the axis of the cache that grows
_PADDING, _TOKEN = 0, 1  # ids of any two tokens
_SAME = 0.01  # of the largest number: by so much one key differs from itself in half precision, and not from another
_GROWING = ("sequence", "total", "past_sequence")


def tokens_first(read: Callable[[Inputs], Decoding]) -> bool:
    """Whether the cache keeps a row's tokens at its front and its padding behind them.

    A token is read alone, and as the last of two of which the first is padding: in the cache of the first layer that
    attends its key lies in front, or that of the padding does.

    Args:
        read: the model's prefill.
    """

    def key(ids: list[list[int]], mask: list[list[int]]) -> np.ndarray:
        tokens, seen = np.array(ids, np.int64), np.zeros(np.shape(ids), bool)
        inputs = Inputs(tokens, np.array(mask, np.int64), seen, {}, {TOKEN_TYPES: np.zeros_like(tokens)})
        past = read(inputs).past
        return as_array(next(past[name] for name in past if not is_state(name))).astype(np.float32)

    alone = key([[_TOKEN]], [[1]])[0, :, 0]
    padded = key([[_PADDING, _TOKEN], [_TOKEN, _TOKEN]], [[0, 1], [1, 1]])[0]
    return bool(np.abs(padded[:, 0] - alone).max() < _SAME * np.abs(alone).max())


def gathered(parts: Sequence[Part], axes: Axes, *, first: bool) -> Decoding:
    """One batch of some rows of several, in their order; each array is copied once, or not at all if nothing changes.

    What belonged to the prompts (``extras``) is left out, as are all logits but the last.

    Args:
        parts: batches of one model, all of the same adapter, each with the places of the rows that are taken; at least
            one row.
        axes: names of the axes of each input in ``further``: ``batch``, and ``sequence`` or ``total`` if they grow.
        first: see :func:`tokens_first`.
    """
    (one, rows), *more = parts
    if not more and np.array_equal(rows, np.arange(len(one.attention_mask))):
        return one
    taken = [_Taken(state, np.asarray(at, dtype=np.int64)) for state, at in parts if len(at)]
    length = max(part.mask.shape[1] for part in taken)
    return Decoding(
        logits=np.concatenate([part.state.logits[part.rows, -1:] for part in taken]),
        past={
            name: np.concatenate([part.of_layer(name)[part.rows] for part in taken])
            if is_state(name)
            else _stacked(taken, name, length, first)
            for name in one.past
        },
        attention_mask=np.concatenate([_padded(part.mask, {1: length}) for part in taken]),
        further={
            name: _together([part.further(name, axes[name]) for part in taken], axes[name]) for name in one.further
        },
        extras={},
        swaps=one.swaps,
        scores={name: np.concatenate([part.state.scores[name][part.rows] for part in taken]) for name in one.scores},
    )


class _Taken:
    """Some rows of a batch, without the columns on the left that are padding for all of them."""

    def __init__(self, state: Decoding, rows: Int[np.ndarray, " rows"]) -> None:
        self.state, self.rows = state, rows
        mask = state.attention_mask[rows]
        self._spare = int(mask.any(axis=0).argmax())
        self.mask = mask[:, self._spare :]

    def of_layer(self, name: str) -> np.ndarray:
        """A layer's cache of all rows of the batch."""
        return as_array(self.state.past[name])

    def tokens(self, first: bool) -> slice:
        """Where the cache has what is kept of it."""
        return slice(self.mask.shape[1]) if first else slice(self._spare, None)

    def further(self, name: str, axes: Sequence[int | str]) -> np.ndarray:
        """A further input; what runs along with the mask loses as much of its left."""
        taken = np.take(self.state.further[name], self.rows, axis=list(axes).index("batch"))
        return taken[tuple(slice(self._spare, None) if axis == "total" else slice(None) for axis in axes)]


def _stacked(parts: Sequence[_Taken], name: str, length: int, first: bool) -> np.ndarray:
    """A layer's cache of all rows, padded; behind its tokens a row's last place, where held gates are, is repeated."""
    caches = [part.of_layer(name) for part in parts]
    _, heads, _, width = caches[0].shape
    made, at = np.empty((sum(len(part.rows) for part in parts), heads, length, width), caches[0].dtype), 0
    for part, cache in zip(parts, caches, strict=True):
        filled, kept = part.mask.shape[1], part.tokens(first)
        for row in part.rows:
            there = made[at]
            if first:
                there[:, :filled] = cache[row, :, kept]
                there[:, filled:] = there[:, filled - 1 : filled]
            else:
                there[:, : length - filled] = 0
                there[:, length - filled :] = cache[row, :, kept]
            at += 1
    return made


def _padded(value: np.ndarray, sizes: Mapping[int, int]) -> np.ndarray:
    """Zeros on the left of some axes, up to these sizes."""
    widths = [(sizes.get(axis, size) - size, 0) for axis, size in enumerate(value.shape)]
    return np.pad(value, widths) if any(width for width, _ in widths) else value


def _together(values: Sequence[np.ndarray], axes: Sequence[int | str]) -> np.ndarray:
    growing = [axis for axis, name in enumerate(axes) if name in _GROWING]
    sizes = {axis: max(value.shape[axis] for value in values) for axis in growing}
    return np.concatenate([_padded(value, sizes) for value in values], axis=list(axes).index("batch"))
