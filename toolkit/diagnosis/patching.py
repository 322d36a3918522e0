"""Patches: forward hooks that give activations another value for as long as a ``with`` block lasts."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...adapters.artifact.sites import Site
from ...adapters.errors import UsageError
from ..evaluation.refusal import RefusalTokens
from ..model.outputs import replace_hidden
from .pairs import PairBatch
from .terms import Positions

if TYPE_CHECKING:
    from ..model.vlm import VLM

# The last linear layer of an MLP, by the names it has in transformers.
_MLP_OUTPUTS = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "w2", "wo")


@contextmanager
def swapped(vlm: VLM, batch: PairBatch, site: Site, positions: Positions) -> Iterator[None]:
    """Within the block, each row of a pair has the other row's activations at ``site``."""
    mask = batch.masks[positions][..., None]

    def swap(hidden: Tensor) -> Tensor:
        return torch.where(mask, batch.counterpart(hidden), hidden)

    handle = vlm.parts.tap(site).change(swap)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def neuron_swapped(vlm: VLM, batch: PairBatch, layer: int, neuron: int, positions: Positions) -> Iterator[None]:
    """Within the block, one MLP neuron has the activation of the pair's other row."""
    mask = batch.masks[positions]

    def swap(module: nn.Module, args: tuple) -> tuple:
        hidden = args[0].clone()
        hidden[..., neuron] = torch.where(mask, batch.counterpart(hidden[..., neuron]), hidden[..., neuron])
        return (hidden, *args[1:])

    handle = mlp_output(vlm, layer).register_forward_pre_hook(swap)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def skipped(vlm: VLM, layers: Sequence[int]) -> Iterator[None]:
    """Within the block, these decoder blocks add nothing: what comes in goes out."""

    def skip(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        return replace_hidden(output, lambda _: hidden)

    with ExitStack() as stack:
        for layer in layers:
            module = vlm.parts.module(Site.block(layer))
            stack.callback(module.register_forward_hook(skip, with_kwargs=True).remove)
        yield


def mlp_output(vlm: VLM, layer: int) -> nn.Linear:
    """The linear layer whose inputs are the neurons of block ``layer``'s MLP.

    Raises:
        UsageError: the MLP has no such layer, as in a mixture of experts.
    """
    mlp = vlm.parts.branches.mlp(layer)
    width = vlm.base.d_model
    for name in _MLP_OUTPUTS:
        child = getattr(mlp, name, None)
        if isinstance(child, nn.Linear) and child.out_features == width:
            return child
    raise UsageError(
        f"The MLP of decoder layer {layer} ({type(mlp).__name__}) has no output layer that safetykit knows.",
        "Pass --neurons 0 to leave single neurons out.",
    )


def last_logits(vlm: VLM, arguments: dict[str, Any]) -> Float[Tensor, "rows vocab"]:
    """Logits at the last prompt position; those of other positions are not computed where the model allows it."""
    keep = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(vlm.model.forward).parameters else {}
    return vlm.model(**arguments, use_cache=False, **keep).logits[:, -1]


@torch.inference_mode()
def margins(vlm: VLM, batch: PairBatch, refusal: RefusalTokens) -> Float[Tensor, " rows"]:
    """Refusal margin of every row, in nats, on the CPU."""
    return refusal.margin(last_logits(vlm, batch.arguments)).cpu()
