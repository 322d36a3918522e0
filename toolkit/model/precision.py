"""Computing in a wider type than the weights have, from these very weights.

A graph in fp32 or fp16 that was made of a checkpoint in bfloat16 is not what PyTorch computes in bfloat16: that rounds
every activation to 8 bits. What it is compared with is the same weights, exactly, and float32 between them.

Where memory allows, all weights are widened once. Where it does not, they stay as they are (on a CPU, in the
checkpoint's files), and each block of the model has its own for as long as it runs, in memory that the next one takes
over. A CPU's memory is everybody's, and mapped weights need none of it: a small part of it is taken at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters.artifact.checkpoint import checkpoint_tensors
from ...adapters.errors import UsageError
from .loading import device_of, spread
from .memory import free_memory

_SHARES = {"cpu": 1 / 16}  # of the memory that is free, for weights that are widened once
_SHARE = 0.7  # the same of other devices
Spare = dict[tuple[torch.Size, torch.device], list[Tensor]]  # memory of weights that were widened


def is_large(folder: Path) -> bool:
    """Whether a copy of a checkpoint's weights in float32 would be more than the share of this machine's memory that is
    taken for one."""
    weights = sum(math.prod(one.shape) for one in checkpoint_tensors(folder).values())
    return 4 * weights > _SHARES["cpu"] * free_memory(torch.device("cpu"))


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
        device = device_of(model)
        most = _SHARES.get(device.type, _SHARE) * free_memory(device)
        at_once = sum(one.numel() for one in narrow) * dtype.itemsize <= most
    with ExitStack() as stack:
        if not at_once:
            narrow = _streamed(model, dtype, stack)
        stack.enter_context(_wide(narrow, dtype))
        yield


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _wide(parameters: list[nn.Parameter], dtype: torch.dtype, spare: Spare | None = None) -> Iterator[None]:
    """Parameters in another type until the block ends.

    Args:
        spare: memory to use and to leave there, of which fresh pages would cost more than the conversion.
    """
    spare = {} if spare is None else spare
    with torch.no_grad():
        kept = [(one, one.data) for one in parameters if one.is_floating_point() and one.dtype != dtype]
        for one, values in kept:
            free = spare.setdefault((values.shape, values.device), [])
            one.data = (free.pop() if free else torch.empty_like(values, dtype=dtype)).copy_(values)
    try:
        yield
    finally:
        for one, values in kept:
            spare[values.shape, values.device].append(one.data)
            one.data = values


def _streamed(model: nn.Module, dtype: torch.dtype, stack: ExitStack) -> list[nn.Parameter]:
    """Have blocks, the embedding and the head widen themselves while they run.

    Returns:
        The parameters of the rest, which is small, and of which some modules ask the type.
    """
    blocks, spare = list(_blocks(model)), Spare()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    for block in blocks:
        _widen_while_running(block, dtype, stack, spare)
    if type(embedding) is nn.Embedding:  # others scale what they look up
        blocks.append(head)
        _widen_while_running(head, dtype, stack, None)

        def widen(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output.to(dtype)

        stack.callback(embedding.register_forward_hook(widen).remove)
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


def _widen_while_running(block: nn.Module, dtype: torch.dtype, stack: ExitStack, spare: Spare | None) -> None:
    running: list[Any] = []

    def before(module: nn.Module, args: Any) -> None:
        running.append(_wide(list(module.parameters()), dtype, spare))
        running[-1].__enter__()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    stack.callback(block.register_forward_pre_hook(before, prepend=True).remove)
    stack.callback(block.register_forward_hook(after, always_call=True).remove)
