"""Passes over one batch that begin at a decoder layer: a patch of layer l leaves everything below l as it was.

The output of the layer below is kept, one value [rows, seq, d_model] at a time. In a pass that begins at l the
layers below compute nothing, and the last of them gives what was kept. Everything else (masks, positions, features that
join the stream between layers, the head) is the model's own forward: the logits are the same bits, for half the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..evaluation.refusal import RefusalTokens
from ..model.capture import Reached
from ..model.outputs import replace_hidden
from .pairs import PairBatch
from .patching import margins

if TYPE_CHECKING:
    from ..model.vlm import VLM


class Resumed:
    """The passes of one batch, by ascending layer.

    Attributes:
        plain: refusal margin of every row without a patch, in nats, on the CPU.
    """

    plain: Float[Tensor, " rows"]

    def __init__(self, vlm: VLM, batch: PairBatch, refusal: RefusalTokens) -> None:
        """Costs two passes: one without a patch, and one to see whether the model can be resumed."""
        self._vlm, self._batch, self._refusal = vlm, batch, refusal
        self._layers = list(vlm.parts.layers)
        self._start, self._kept = 0, None
        self.plain = self._pass()
        self._resumes = self._same_from_the_last()
        self._start, self._kept = 0, None

    def margins(self, layer: int) -> Float[Tensor, " rows"]:
        """Refusal margin of every row, in nats, on the CPU, with the patches that are in force.

        Args:
            layer: no patch is below it; not less than in the call before.
        """
        if self._resumes:
            self._reach(layer)
        return self._pass()

    def _pass(self) -> Float[Tensor, " rows"]:
        with self._begun():
            return margins(self._vlm, self._batch, self._refusal)

    def _same_from_the_last(self) -> bool:
        """Whether the layers hand each other nothing but the stream (some share keys and values)."""
        try:
            self._reach(len(self._layers) - 1)
            return torch.allclose(self._pass(), self.plain, rtol=1e-3, atol=1e-3)
        except (LookupError, AttributeError, TypeError):
            return False

    def _reach(self, layer: int) -> None:
        """Keep the output of the layer before ``layer``, by a pass that ends there."""
        if layer == self._start:
            return
        before = self._layers[layer - 1]
        forward = before.forward

        kept: list[Any] = []

        def keep(*args: Any, **kwargs: Any) -> Any:
            kept.append(forward(*args, **kwargs))
            raise Reached

        with suppress(Reached), self._begun(), _forward(before, keep):
            margins(self._vlm, self._batch, self._refusal)
        self._start, (self._kept,) = layer, kept

    def _give(self, *_: Any, **__: Any) -> Any:
        return replace_hidden(self._kept, torch.clone)  # what comes after may write into it

    @contextmanager
    def _begun(self) -> Iterator[None]:
        """Within the block the layers below compute nothing."""
        with ExitStack() as stack:
            for layer in self._layers[: max(self._start - 1, 0)]:
                stack.enter_context(_forward(layer, _pass_on))
            if self._start:
                stack.enter_context(_forward(self._layers[self._start - 1], self._give))
            yield


def _pass_on(*args: Any, **kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


@contextmanager
def _forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Within the block the module runs ``forward``; its hooks act as ever."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
