"""Rows of states that are read in blocks, so that memory does not grow with their number."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_HELD = 2**25  # bytes in float64 up to which rows are held rather than read again
_BLOCK = 2**24  # bytes of a block in float64


def mapped(records: int, width: int) -> Float[Tensor, "records d_model"]:
    """A float32 tensor in a file without a name, in the folder for temporary files (``TMPDIR``).

    The system writes it to disk where memory is short; it is gone with the tensor.
    """
    if not records:
        return torch.empty(0, width)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=(records, width)))


class Rows:
    """Some rows of a matrix, in float64.

    Args:
        values: [all, d_model], in any precision.
        index: which rows, all by default.
    """

    def __init__(
        self, values: Float[np.ndarray, "all d_model"], index: Int[np.ndarray, " records"] | None = None
    ) -> None:
        self._values, self._index = values, index
        self.shape = (len(values) if index is None else len(index), values.shape[1])
        self._held = self._read(0, len(self)) if 8 * self.shape[0] * self.shape[1] <= _HELD else None

    def __len__(self) -> int:
        return self.shape[0]

    def all(self) -> Float[np.ndarray, "records d_model"]:
        """All of them at once."""
        return self._read(0, len(self)) if self._held is None else self._held

    def blocks(self) -> Iterator[tuple[slice, Float[np.ndarray, "block d_model"]]]:
        """Block by block, with their places."""
        if self._held is not None:
            yield slice(0, len(self)), self._held
            return
        size = max(1, _BLOCK // (8 * self.shape[1]))
        for start in range(0, len(self), size):
            stop = min(start + size, len(self))
            yield slice(start, stop), self._read(start, stop)

    def __matmul__(self, weight: np.ndarray) -> np.ndarray:
        """Products with a vector or a matrix."""
        return np.concatenate([block @ weight for _, block in self.blocks()])

    def mean(self) -> Float[np.ndarray, " d_model"]:
        """The mean row."""
        total: np.ndarray = sum((block.sum(0) for _, block in self.blocks()), np.zeros(self.shape[1]))
        return total / len(self)

    def variance(self, mean: Float[np.ndarray, " d_model"]) -> Float[np.ndarray, " d_model"]:
        """Mean squared distance from ``mean``, by component."""
        total: np.ndarray = sum((np.square(block - mean).sum(0) for _, block in self.blocks()), np.zeros(self.shape[1]))
        return total / len(self)

    def _read(self, start: int, stop: int) -> np.ndarray:
        chosen = self._values[start:stop] if self._index is None else self._values[self._index[start:stop]]
        return np.asarray(chosen, np.float64)
