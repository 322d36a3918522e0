"""Where a site is in a model, and how its states are read and changed there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .outputs import hidden_of, replace_hidden

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Tap:
    """A site as a module's output, or its input.

    Attributes:
        before: the site is what the module is given, not what it gives.
        factor: what the block multiplies the module's output by before it joins the residual stream; the site is the
            product.
    """

    module: nn.Module
    before: bool = False
    factor: float = 1.0

    def read(self, look: Callable[[Tensor], None]) -> RemovableHandle:
        """Show ``look`` the states at the site whenever the model passes there; removing the handle ends it."""
        if self.before:
            return self.module.register_forward_pre_hook(lambda _, args: look(args[0]))

        def show(module: nn.Module, args: Any, output: Any) -> None:
            hidden = hidden_of(output)
            look(hidden if self.factor == 1 else hidden * self.factor)

        return self.module.register_forward_hook(show)

    def change(self, run: Change) -> RemovableHandle:
        """Put what ``run`` makes of the states in their place; removing the handle ends it."""
        if self.before:
            return self.module.register_forward_pre_hook(lambda _, args: (run(args[0]), *args[1:]))
        through = run if self.factor == 1 else self._scaled(run)
        return self.module.register_forward_hook(lambda _, __, output: replace_hidden(output, through))

    def _scaled(self, run: Change) -> Change:
        def through(hidden: Tensor) -> Tensor:
            site = hidden * self.factor
            return hidden + (run(site) - site) / self.factor  # states that are not changed stay what they are

        return through
