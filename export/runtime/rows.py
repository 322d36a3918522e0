"""Decoders that do not understand rows padded on the left, such as those with GroupQueryAttention, which takes a row's
length for the place of its last token. Their rows are run one by one, each without its padding.

Works on NumPy arrays and does not use torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ...adapters.errors import UsageError
from ..names import ATTENTION_MASK, INPUTS_EMBEDS
from .binding import as_array

Arrays = dict[str, np.ndarray]
Axes = Mapping[str, Sequence[int | str]]


def run_rows_alone(run: Callable[[Arrays], Arrays], feeds: Arrays, inputs: Axes, outputs: Axes) -> Arrays:
    """Run a batch whose rows are padded on the left; without padding it is run as it is.

    Args:
        run: one call of the decoder.
        inputs, outputs: names of the axes of each; those called batch, sequence, past_sequence and total are known.

    Returns:
        Results as of one call, zero at the padding, and in rows that get padding after tokens: nobody hears those.

    Raises:
        UsageError: a row of prompts has padding elsewhere than on its left.
    """
    feeds = {name: as_array(value) for name, value in feeds.items()}
    mask = feeds[ATTENTION_MASK].astype(bool)
    new = feeds[INPUTS_EMBEDS].shape[1]
    continued = new > 1 and mask.shape[1] > new  # GroupQueryAttention does that for one row only
    if mask.all() and not continued:
        return run(feeds)
    pads = np.where(mask.any(axis=1), mask.argmax(axis=1), mask.shape[1] - 1)
    left = ~mask[:, -1] & (new < mask.shape[1])
    if any(not left[row] and not mask[row, pad:].all() for row, pad in enumerate(pads)):
        raise UsageError("A row of the batch has padding inside or on its right.", "Pad on the left.")
    found: dict[int, Arrays] = {}
    for row, pad in enumerate(pads):
        if left[row]:
            continue
        before = min(pad, mask.shape[1] - new)
        skipped = {"total": pad, "past_sequence": before, "sequence": pad - before}
        one = {name: _row(value, inputs.get(name, ()), row, skipped) for name, value in feeds.items()}
        results = {name: as_array(value) for name, value in run(one).items()}
        found[row] = {name: _padded(value, outputs.get(name, ()), skipped) for name, value in results.items()}
    blank = {name: np.zeros_like(value) for name, value in next(iter(found.values())).items()}
    each = [found.get(row, blank) for row in range(len(mask))]
    return {name: _joined([one[name] for one in each], outputs.get(name, ())) for name in blank}


def _row(value: np.ndarray, axes: Sequence[int | str], row: int, skipped: Mapping[str, int]) -> np.ndarray:
    alone = slice(row, row + 1)
    steps = (alone if axis == "batch" else slice(skipped.get(str(axis), 0), None) for axis in axes[: value.ndim])
    return np.ascontiguousarray(value[tuple(steps)])


def _padded(value: np.ndarray, axes: Sequence[int | str], skipped: Mapping[str, int]) -> np.ndarray:
    widths = [(skipped.get(str(axis), 0), 0) for axis in axes[: value.ndim]]
    return np.pad(value, widths) if any(width for width, _ in widths) else value


def _joined(values: Sequence[np.ndarray], axes: Sequence[int | str]) -> np.ndarray:
    return np.concatenate(values, axis=list(axes).index("batch") if "batch" in axes else 0)
