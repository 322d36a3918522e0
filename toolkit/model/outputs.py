"""What decoder blocks and their parts return: hidden states, alone or as the first of a tuple."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def hidden_of(output: Any) -> Tensor:
    """The hidden states in a module's output."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


def replace_hidden(output: Any, run: Callable[[Tensor], Tensor]) -> Any:
    """The output with its hidden states changed."""
    if isinstance(output, Tensor):
        return run(output)
    return (run(output[0]), *output[1:])
