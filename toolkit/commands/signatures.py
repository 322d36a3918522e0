"""Signatures that are put together: Typer reads a command's options from them. Nothing is imported here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any


def signed(function: Callable[..., Any], parameters: Sequence[Parameter]) -> Callable[..., Any]:
    """``function``, called with keywords, as if it had been written with ``parameters``."""
    function.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {one.name: one.annotation for one in parameters}
    return function
