"""A checkpoint that stays loaded for several users one after another, each of which finds it as if just loaded."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .batching import BatchSize
from .options import AUTO
from .vlm import VLM


class Kept:
    """Loads as :meth:`VLM.from_pretrained` does, and hands out again what it loaded last where that is the same.

    Whoever takes the model puts adapters on and off and changes nothing else that stays. Known image features are
    forgotten in between, because their last bits depend on the batch that they came from, and the number of rows at
    once is again what it was: so answers do not depend on what was asked before.
    """

    def __init__(self) -> None:
        self._vlm: VLM | None = None
        self._asked: tuple[str, dict[str, Any]] | None = None
        self._rows: tuple[int | None, int | None] = (None, None)

    def __call__(self, folder: Path | str, **loading: Any) -> VLM:
        """The model of a folder, loaded with these keywords of :meth:`VLM.from_pretrained`.

        Raises:
            UsageError: as that does.
        """
        dtype = loading.get("dtype", AUTO)
        asked = (str(folder), {**loading, "dtype": dtype})
        if self._vlm is None or not self._serves(self._vlm, asked):
            self.release()
            self._vlm, self._asked = VLM.from_pretrained(folder, **loading), asked
            self._rows = (self._vlm.batch_size.asked, self._vlm.batch_size.most)
        vlm = self._vlm
        vlm.features.clear()
        vlm.batch_size = BatchSize(*self._rows)
        return vlm

    def _serves(self, vlm: VLM, asked: tuple[str, dict[str, Any]]) -> bool:
        """Whether it is what loading would give; a type may be named that the model has by itself."""
        if self._asked == asked:
            return True
        folder, loading = asked
        own = loading["dtype"] == str(vlm.dtype).removeprefix("torch.")
        return own and self._asked == (folder, {**loading, "dtype": AUTO})

    def release(self) -> None:
        """Free its memory."""
        if self._vlm is not None:
            self._vlm = self._asked = None
            gc.collect()  # modules and their hooks refer to each other


@contextmanager
def keeping() -> Iterator[Kept]:
    """Keep models loaded until the block ends."""
    kept = Kept()
    try:
        yield kept
    finally:
        kept.release()
