"""How many rows run through a model at once: a usual number, and fewer where the memory does not suffice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from ...adapters.errors import UsageError
from ..distributed.dealing import dealt, own
from ..progress import Progress

T = TypeVar("T")
R = TypeVar("R")

_ROW = 1024  # tokens that a row is taken to have, picture included
_SHARE = 0.5  # of the memory that the weights leave


class BatchSize:
    """The number of rows at once.

    Attributes:
        asked: the number that was asked for; None chooses it.
        most: what fits, by an estimate at first, then by what did not; None if nothing is known.
    """

    def __init__(self, asked: int | None = None, most: int | None = None) -> None:
        self.asked, self.most = asked, most

    def of(self, usual: int) -> int:
        """Rows at once, where ``usual`` ones run if memory allows."""
        if self.asked is not None:
            return self.asked
        return usual if self.most is None else max(1, min(usual, self.most))

    def shrink(self, rows: int) -> None:
        """Note that ``rows`` at once were too many.

        Raises:
            UsageError: this number was asked for, or is 1.
        """
        if self.asked is not None:
            raise UsageError(
                f"The device's memory does not hold a batch of {rows}.",
                "Give a smaller --batch-size, or auto, which finds one that fits.",
            )
        if rows <= 1:
            raise UsageError(
                "The device's memory does not hold the model and one row.",
                "Spread the model with --device-map auto, or load it in a smaller --dtype.",
            )
        self.most = rows // 2
        _free_cache()


def fitting(
    items: Iterable[T],
    size: BatchSize,
    usual: int,
    run: Callable[[Sequence[T]], R],
    rows: Callable[[T], int] = lambda _: 1,
) -> Iterator[tuple[list[T], R]]:
    """Items in batches that the memory holds, each with what ``run`` makes of it, in order.

    Args:
        usual: rows at once, if they fit.
        run: called with a batch; a second time with parts of it, if the memory did not suffice.
        rows: how many rows an item is; it is never parted.

    Raises:
        UsageError: one item alone is too much.
    """
    waiting = deque(items)
    while waiting:
        batch = [waiting.popleft()]
        count = rows(batch[0])
        while waiting and count + rows(waiting[0]) <= size.of(usual):
            batch.append(waiting.popleft())
            count += rows(batch[-1])
        try:
            made = run(batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size.shrink(count if len(batch) > 1 else 1)
            waiting.extendleft(reversed(batch))
            continue
        yield batch, made
        del made  # it must not lie beside the next batch


def counted(
    batches: Iterator[tuple[list[T], R]], total: int, tell: Progress | None, rows: Callable[[T], int] = lambda _: 1
) -> Iterator[tuple[list[T], R]]:
    """The same batches; ``tell`` hears how many of ``total`` rows have gone through."""
    done = 0
    for batch, made in batches:
        done += sum(map(rows, batch))
        if tell is not None:
            tell(done, total)
        yield batch, made


def streamed(
    items: Iterable[T],
    size: BatchSize,
    usual: int,
    run: Callable[[Sequence[T]], R],
    rows: Callable[[T], int] = lambda _: 1,
) -> Iterator[tuple[list[T], R]]:
    """:func:`fitting`, dealt out to the processes of a job; each batch is run by one of them and comes to all.

    A chunk is what ``usual`` rows are, in batches of the size that was asked for, so that batches hold the same items
    for any number of processes. What one process's memory makes smaller, it alone makes smaller.

    Args:
        run: its results are sent to the other processes.
    """

    def compute(chunk: list[T]) -> list[tuple[int, R]]:
        return [(len(batch), made) for batch, made in fitting(chunk, size, usual, run, rows)]

    for chunk, parts in dealt(_chunks(items, size, usual, rows), compute):
        start = 0
        for count, made in parts:
            yield chunk[start : start + count], made
            start += count


def own_share(items: Iterable[T], size: BatchSize, usual: int, rows: Callable[[T], int] = lambda _: 1) -> Iterator[T]:
    """What this process will run of the items, if :func:`streamed` gets the same."""
    return (item for chunk in own(_chunks(items, size, usual, rows)) for item in chunk)


def _chunks(items: Iterable[T], size: BatchSize, usual: int, rows: Callable[[T], int]) -> Iterator[list[T]]:
    """Items in as many whole batches, of the size asked for, as ``usual`` rows hold."""
    full = size.asked or usual
    most = max(1, usual // full)
    chunk: list[T] = []
    batches, count = 1, 0
    for item in items:
        if count and count + rows(item) > full:
            batches, count = batches + 1, 0
            if batches > most:
                yield chunk
                chunk, batches = [], 1
        chunk.append(item)
        count += rows(item)
    if chunk:
        yield chunk


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory, or this machine's, did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return "not enough memory" in str(error) or "out of memory" in str(error).casefold()


def rows_beside(model: Any, memory: int) -> int:
    """Rows of about a thousand tokens that fit into a device's ``memory`` beside a model: a power of two."""
    config, itemsize = model.config.get_text_config(), model.dtype.itemsize
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    width, inner = config.hidden_size, getattr(config, "intermediate_size", 0) or 4 * config.hidden_size
    heads, layers = vars(config).get("num_key_value_heads") or config.num_attention_heads, config.num_hidden_layers
    # Not every layer need have the same, so that some configurations refuse to be asked for one number.
    wide = [vars(config).get(name) for name in ("head_dim", "global_head_dim")]
    head = max(filter(None, wide), default=width // config.num_attention_heads)
    token = itemsize * (8 * width + 3 * inner + 2 * layers * heads * head)  # a layer's work, and the caches of all
    return 1 << max(0, int(_SHARE * (memory - weights) // (_ROW * token)).bit_length() - 1)


def _free_cache() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.memory.empty_cache()
