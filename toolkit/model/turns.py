"""Methods that run in one thread at a time.

A tokenizer keeps from call to call whether it pads. A text that one thread asks about would leave another's batch
unpadded, so whatever asks a tokenizer takes turns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Any)  # has a ``turn``, an RLock


def in_turn(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """The method, for one thread at a time of those that share the object's ``turn``."""

    @wraps(method)
    def run(self: S, /, *given: P.args, **named: P.kwargs) -> R:
        with self.turn:
            return method(self, *given, **named)

    return run
