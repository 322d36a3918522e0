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
from dataclasses import replace

import numpy as np

from ...toolkit.model.requests import Inputs
from ..names import TOKEN_TYPES
from .binding import as_array
from .decoding import Decoding

Axes = Mapping[str, Sequence[int | str]]  # what the axes of the decoder's further inputs are called
_LENGTH = 2  # the axis of the cache that grows
_PADDING, _TOKEN = 0, 1  # ids of any two tokens
_SAME = 0.01  # of the largest number: by so much one key differs from itself in half precision, and not from another
_GROWING = ("sequence", "total", "past_sequence")


def tokens_first(read: Callable[[Inputs], Decoding]) -> bool:
    """Whether the cache keeps a row's tokens at its front and its padding behind them.

    A token is read alone, and as the last of two of which the first is padding: in the first layer's cache its key lies
    in front, or that of the padding does.

    Args:
        read: the model's prefill.
    """

    def key(ids: list[list[int]], mask: list[list[int]]) -> np.ndarray:
        tokens, seen = np.array(ids, np.int64), np.zeros(np.shape(ids), bool)
        inputs = Inputs(tokens, np.array(mask, np.int64), seen, {}, {TOKEN_TYPES: np.zeros_like(tokens)})
        return as_array(next(iter(read(inputs).past.values()))).astype(np.float32)

    alone = key([[_TOKEN]], [[1]])[0, :, 0]
    padded = key([[_PADDING, _TOKEN], [_TOKEN, _TOKEN]], [[0, 1], [1, 1]])[0]
    return bool(np.abs(padded[:, 0] - alone).max() < _SAME * np.abs(alone).max())


def joined(states: Sequence[Decoding], axes: Axes, *, first: bool) -> Decoding:
    """One batch of the rows of several, in their order.

    What belonged to the prompts (``extras``) is left out, as are all logits but the last.

    Args:
        states: of one model, all of the same adapter; at least one.
        axes: names of the axes of each input in ``further``: ``batch``, and ``sequence`` or ``total`` if they grow.
        first: see :func:`tokens_first`.
    """
    one = states[0]
    length = max(state.attention_mask.shape[1] for state in states)
    return Decoding(
        logits=np.concatenate([state.logits[:, -1:] for state in states]),
        past={name: _stacked([as_array(state.past[name]) for state in states], length, first) for name in one.past},
        attention_mask=np.concatenate([_padded(state.attention_mask, {1: length}) for state in states]),
        further={name: _together([state.further[name] for state in states], axes[name]) for name in one.further},
        extras={},
        swaps=one.swaps,
        scores={name: np.concatenate([state.scores[name] for state in states]) for name in one.scores},
    )


def kept(state: Decoding, rows: Sequence[int], axes: Axes, *, first: bool) -> Decoding:
    """The batch with these of its rows only; ``extras`` are left out. For ``first`` see :func:`tokens_first`."""
    at = np.asarray(rows, dtype=np.int64)
    mask = state.attention_mask[at]
    spare = int(mask.any(axis=0).argmax())
    filled = slice(mask.shape[1] - spare) if first else slice(spare, None)
    return replace(
        state,
        logits=state.logits[at],
        past={name: as_array(value)[at][:, :, filled] for name, value in state.past.items()},
        attention_mask=mask[:, spare:],
        further={name: _taken(value, axes[name], at, spare) for name, value in state.further.items()},
        extras={},
        scores={name: value[at] for name, value in state.scores.items()},
    )


def _stacked(caches: Sequence[np.ndarray], length: int, first: bool) -> np.ndarray:
    """A layer's cache of all rows, padded; behind its tokens a row's last place, where held gates are, is repeated."""
    rows, (_, heads, _, width) = sum(len(cache) for cache in caches), caches[0].shape
    made, at = np.zeros((rows, heads, length, width), caches[0].dtype), 0
    for cache in caches:
        there, filled = made[at : at + len(cache)], cache.shape[_LENGTH]
        if first:
            there[:, :, :filled], there[:, :, filled:] = cache, cache[:, :, -1:]
        else:
            there[:, :, length - filled :] = cache
        at += len(cache)
    return made


def _padded(value: np.ndarray, sizes: Mapping[int, int]) -> np.ndarray:
    """Zeros on the left of some axes, up to these sizes."""
    widths = [(sizes.get(axis, size) - size, 0) for axis, size in enumerate(value.shape)]
    return np.pad(value, widths) if any(width for width, _ in widths) else value


def _together(values: Sequence[np.ndarray], axes: Sequence[int | str]) -> np.ndarray:
    growing = [axis for axis, name in enumerate(axes) if name in _GROWING]
    sizes = {axis: max(value.shape[axis] for value in values) for axis in growing}
    return np.concatenate([_padded(value, sizes) for value in values], axis=list(axes).index("batch"))


def _taken(value: np.ndarray, axes: Sequence[int | str], rows: np.ndarray, spare: int) -> np.ndarray:
    """Rows of a further input; what runs along with the mask loses as much of its left."""
    taken = np.take(value, rows, axis=list(axes).index("batch"))
    steps = tuple(slice(spare, None) if name == "total" else slice(None) for name in axes)
    return taken[steps]
