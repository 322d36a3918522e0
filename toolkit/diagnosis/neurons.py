"""Single MLP neurons: ranked by an attribution, the foremost verified by exact patching.

A neuron is one input dimension of an MLP's last linear layer. Its indirect effect (:mod:`.mediation`) to first order,
for all neurons of all layers from one backward pass (Nanda 2023, Syed et al. 2023, arXiv:2310.10348):

    NIE_j ≈ Σ_t ∂m/∂a_{t,j} (a_{t,j}^benign − a_{t,j}^malicious)      at the malicious run, t over the positions

First order misleads where a neuron saturates downstream; so the foremost neurons are patched, one at a time, and their
rank correlation with the attribution is reported, beside neurons drawn at random for comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..evaluation.refusal import RefusalTokens
from .pairs import PairBatch
from .patching import last_logits, mlp_output, neuron_swapped
from .resuming import Resumed
from .terms import Positions

if TYPE_CHECKING:
    from ..model.vlm import VLM

Neuron = tuple[int, int]  # layer, neuron; both from 0


class Attribution:
    """Mean attribution of every neuron over a stream of pairs, in nats.

    Attributes:
        count: pairs seen.
        total: sums by kind of position, [layers, d_ff], float64.
    """

    def __init__(self, positions: Sequence[Positions]) -> None:
        self.count = 0
        self.total: dict[Positions, Tensor] = {}
        self._positions = tuple(positions)

    def add(self, count: int, totals: Mapping[Positions, Tensor]) -> None:
        """Add what :meth:`of` found of ``count`` pairs."""
        for where, total in totals.items():
            self.total[where] = self.total.get(where, 0) + total
        self.count += count

    def of(self, vlm: VLM, batch: PairBatch, refusal: RefusalTokens) -> dict[Positions, Float[Tensor, "layers d_ff"]]:
        """Sums over a batch, which is not added: one forward and one backward pass."""
        size, found = len(batch.pairs), {}
        with _frozen(vlm.model), torch.enable_grad(), _watched(vlm) as activations:
            margin = refusal.margin(last_logits(vlm, batch.arguments))[:size].sum()
            gradients = torch.autograd.grad(margin, activations)
        for where in self._positions:
            mask = batch.masks[where][:size, :, None]
            rows = []
            for activation, gradient in zip(activations, gradients, strict=True):
                activation = activation.detach()
                gap = (batch.counterpart(activation) - activation)[:size]
                rows.append((gradient[:size] * gap * mask).double().sum((0, 1)).cpu())
            found[where] = torch.stack(rows)
        return found

    def mean(self) -> dict[Positions, Float[np.ndarray, "layers d_ff"]]:
        """Attribution per neuron, by kind of position."""
        return {where: (total / self.count).float().numpy() for where, total in self.total.items()}


def foremost(attribution: Float[np.ndarray, "layers d_ff"], count: int) -> list[Neuron]:
    """The neurons of largest absolute attribution, largest first."""
    order = np.argsort(-np.abs(attribution), axis=None, kind="stable")[:count]
    return [
        (int(layer), int(neuron)) for layer, neuron in zip(*np.unravel_index(order, attribution.shape), strict=True)
    ]


def drawn(
    attribution: Float[np.ndarray, "layers d_ff"], count: int, without: Sequence[Neuron], seed: int
) -> list[Neuron]:
    """Neurons drawn at random, for comparison; none of ``without``."""
    depth, width = attribution.shape
    order = np.random.default_rng(seed).permutation(depth * width)
    taken = {layer * width + neuron for layer, neuron in without}
    kept = [int(at) for at in order[: count + len(taken)] if int(at) not in taken][:count]
    return [divmod(at, width) for at in kept]


def verify(
    vlm: VLM,
    batch: PairBatch,
    refusal: RefusalTokens,
    neurons: Sequence[Neuron],
    positions: Positions,
    tick: Callable[[], None] = lambda: None,
) -> Float[np.ndarray, "neurons pairs"]:
    """Exact NIE of each neuron on a batch, in nats: a forward pass from its layer on, and one without a patch."""
    size = len(batch.pairs)
    passes = Resumed(vlm, batch, refusal)
    tick()
    found = np.empty((len(neurons), size), np.float32)
    for at in sorted(range(len(neurons)), key=lambda at: neurons[at]):
        layer, neuron = neurons[at]
        with neuron_swapped(vlm, batch, layer, neuron, positions):
            found[at] = (passes.margins(layer) - passes.plain)[:size].numpy()
        tick()
    return found


@contextmanager
def _watched(vlm: VLM) -> Iterator[list[Tensor]]:
    """Yield a list that a forward pass fills with every layer's neurons, as nodes of one graph.

    The graph begins at the first layer's neurons: nothing before them is differentiated.
    """
    seen: list[Tensor] = []

    def watch(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        activation = args[0] if seen else args[0].detach().requires_grad_()
        seen.append(activation)
        return (activation, *args[1:])

    with ExitStack() as stack:
        for layer in range(len(vlm.parts.layers)):
            stack.callback(mlp_output(vlm, layer).register_forward_pre_hook(watch).remove)
        yield seen


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Within the block no weight asks for a gradient, which saves its activations."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
