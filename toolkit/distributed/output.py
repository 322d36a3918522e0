"""An output that several processes work on and the first of them writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar, cast

from ...adapters.errors import SafetykitError
from .world import from_first, is_first

T = TypeVar("T")


def of_first(make: Callable[[], T]) -> T:
    """What the first process alone makes; where it is refused, all of them learn why.

    Raises:
        SafetykitError: what ``make`` raises.
    """
    made: T | SafetykitError | None = None
    if is_first():
        try:
            made = make()
        except SafetykitError as error:
            made = error
    made = from_first(made)
    if isinstance(made, SafetykitError):
        raise made
    return cast(T, made)


@contextmanager
def by_first(claim: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter ``claim`` in the first process; where it is refused, all of them learn why.

    Raises:
        SafetykitError: what the claim raises.
    """
    with ExitStack() as stack:
        of_first(lambda: bool(stack.enter_context(claim)))  # what it yields is its own
        yield
