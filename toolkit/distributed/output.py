"""An output that several processes work on and the first of them writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from ...adapters.errors import SafetykitError
from .world import from_first, is_first


@contextmanager
def by_first(claim: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter ``claim`` in the first process; where it is refused, all of them learn why.

    Raises:
        SafetykitError: what the claim raises.
    """
    with ExitStack() as stack:
        refused: SafetykitError | None = None
        if is_first():
            try:
                stack.enter_context(claim)
            except SafetykitError as error:
                refused = error
        refused = from_first(refused)
        if refused is not None:
            raise refused
        yield
