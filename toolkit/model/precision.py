"""Computing in a wider type than the weights have, from these very weights.

A graph in fp32 or fp16 that was made of a checkpoint in bfloat16 is not what PyTorch computes in bfloat16: that rounds
every activation to 8 bits. What it is compared with is the same weights, exactly, and float32 between them.

Where memory allows, all weights are widened once. Where it does not, they stay as they are (on a CPU, in the
checkpoint's files), and each block of the model has its own for as long as it runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters.errors import UsageError
from .loading import device_of, spread
from .memory import free_memory

_SHARE = 0.7  # of the memory that is free, for weights that are widened once


@contextmanager
def widened(model: Any, dtype: torch.dtype, *, at_once: bool | None = None) -> Iterator[None]:
    """Compute in ``dtype`` until the block ends; then the very same old values are back.

    Args:
        at_once: whether all weights are widened at the start, or each block's while it runs; by default what memory
            allows.

    Raises:
        UsageError: the model is spread over several devices.
    """
    narrow = [one for one in model.parameters() if one.is_floating_point() and one.dtype != dtype]
    if not narrow:
        yield
        return
    if spread(model):
        raise UsageError(
            f"A spread model computes in the type it was loaded in, {_name(model.dtype)}, not in {_name(dtype)}.",
            f"Load it with dtype {_name(dtype)}.",
        )
    if at_once is None:
        at_once = sum(one.numel() for one in narrow) * dtype.itemsize <= _SHARE * free_memory(device_of(model))
    with ExitStack() as stack:
        if not at_once:
            narrow = _streamed(model, dtype, stack)
        stack.enter_context(_wide(narrow, dtype))
        yield


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _wide(parameters: list[nn.Parameter], dtype: torch.dtype) -> Iterator[None]:
    """Parameters in another type until the block ends."""
    with torch.no_grad():
        kept = [(one, one.data) for one in parameters if one.is_floating_point() and one.dtype != dtype]
        for one, values in kept:
            one.data = values.to(dtype)
    try:
        yield
    finally:
        for one, values in kept:
            one.data = values


def _streamed(model: nn.Module, dtype: torch.dtype, stack: ExitStack) -> list[nn.Parameter]:
    """Have blocks, the embedding and the head widen themselves while they run.

    Returns:
        The parameters of the rest, which is small, and of which some modules ask the type.
    """
    blocks = list(_blocks(model))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if type(embedding) is nn.Embedding:  # others scale what they look up
        blocks.append(head)

        def widen(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output.to(dtype)

        stack.callback(embedding.register_forward_hook(widen).remove)
    for block in blocks:
        _widen_while_running(block, dtype, stack)
    inside = {id(one) for block in (*blocks, embedding) for one in block.parameters()}
    if type(embedding) is not nn.Embedding:
        inside -= {id(one) for one in embedding.parameters()}
    return [one for one in model.parameters() if id(one) not in inside]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that stand in a list: the layers of a decoder, of a tower."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def _widen_while_running(block: nn.Module, dtype: torch.dtype, stack: ExitStack) -> None:
    running: list[Any] = []

    def before(module: nn.Module, args: Any) -> None:
        running.append(_wide(list(module.parameters()), dtype))
        running[-1].__enter__()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    stack.callback(block.register_forward_pre_hook(before, prepend=True).remove)
    stack.callback(block.register_forward_hook(after, always_call=True).remove)
