"""Other weights for modules whose own lie on disk or in another device's memory, and come when they run.

accelerate gives such a module a hook that puts its weights in place before each call, from a mapping by name, and takes
them away after it. What is to stand in their place must stand in that mapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn


class _Overlay(Mapping[str, Tensor]):
    """A mapping with some values in the place of its own."""

    def __init__(self, values: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        self._new, self._own = values, own

    def __getitem__(self, name: str) -> Tensor:
        return self._new[name] if name in self._new else self._own[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._own), **self._new})

    def __len__(self) -> int:
        return len(set(self._own) | set(self._new))


def hold(stack: ExitStack, module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Have a module run with ``values`` by name until ``stack`` closes, if its weights come from elsewhere."""
    for hook in _hooks(getattr(module, "_hf_hook", None)):
        if getattr(hook, "offload", False) and hook.weights_map is not None:
            stack.callback(setattr, hook, "weights_map", hook.weights_map)
            hook.weights_map = _Overlay(values, hook.weights_map)


def _hooks(hook: Any) -> tuple[Any, ...]:
    return tuple(getattr(hook, "hooks", ())) or ((hook,) if hook is not None else ())
