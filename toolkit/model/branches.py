"""Where the attention and MLP branches of decoder blocks are: suggested by names, checked by numbers.

A branch site is what joins the residual stream, so input + attention + MLP must be the block's output. On first use one
short prompt is run, and each block is held to that within the rounding of the two sums. Where names mislead, the
identity finds the outputs that do join: those of norms that end the branches (Gemma, GLM-4V), or outputs times a
constant of the block (Granite's residual multiplier).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ...adapters.artifact.sites import Site
from ...adapters.errors import UsageError
from ..families import Family
from .outputs import hidden_of
from .taps import Tap

Run = Callable[[], Any]

_ATTENTION = ("self_attn", "attention", "attn", "linear_attn", "cross_attn", "conv")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc2")
# Where branches end in a norm of their own (Gemma 2 and 3), it is the norm's output that joins the residual stream. A
# layer that has but the first of the two uses its name for the norm before the MLP.
_POST_NORMS = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
_ROUNDING = 4  # units in the last place of each addend
_CLOSE = 0.02  # of a measured factor to the block's constant
_HELP = "Use the site of a whole block."


class Branches:
    """The branches of a decoder's blocks.

    Attributes:
        run: one short forward pass of the model; None for one without weights, whose numbers nobody knows.
    """

    def __init__(self, layers: Sequence[nn.Module], family: Family, run: Run | None, called: str) -> None:
        """Know the names alone; ``called`` is how errors call the model."""
        self._layers, self._family, self.run, self._called = layers, family, run, called
        self._taps: dict[Site, Tap | str] = {}  # or why there is none
        self._children: list[nn.Module] = []  # of the blocks, as they were measured

    def sites(self, layer: int) -> list[Site]:
        """The branch sites that the names of a block suggest."""
        found = [Site("attn", layer), Site("mlp", layer)]
        return found if all(self._suggested(site) is not None for site in found) else []

    def named(self, site: Site) -> nn.Module:
        """The module that names suggest.

        Raises:
            UsageError: they suggest none.
        """
        found = self._suggested(site)
        if found is None or not self.sites(site.layer or 0):
            block = type(self._layers[site.layer or 0]).__name__
            raise UsageError(
                f"Decoder layer {site.layer} of {self._called} ({block}) has no attention and MLP branches, so no site "
                f"{site}.",
                _HELP,
            )
        return found

    def mlp(self, layer: int) -> nn.Module | None:
        """The MLP itself, whatever ends its branch; None where there is none by a usual name."""
        return _child(self._layers[layer], _MLP)

    def tap(self, site: Site) -> Tap:
        """Where the branch joins the residual stream.

        Raises:
            UsageError: the block is not its input plus two branches.
        """
        self.named(site)
        if self.run is None:
            return Tap(self.named(site))
        children = [child for layer in self._layers for child in layer.children()]
        if not self._taps or list(map(id, children)) != list(map(id, self._children)):  # some have been replaced
            self._children = children
            self._measure(self.run)
        found = self._taps[site]
        if isinstance(found, str):
            raise UsageError(f"{self._called} has no site {site}: {found}.", _HELP)
        return found

    def _suggested(self, site: Site) -> nn.Module | None:
        layer, own = self._layers[site.layer or 0], getattr(self._family, "attention" if site.kind == "attn" else "mlp")
        if own:
            return layer.get_submodule(own)
        if hasattr(layer, _POST_NORMS["mlp"]):
            return layer.get_submodule(_POST_NORMS[site.kind])
        names = _ATTENTION if site.kind == "attn" else _MLP
        return _child(layer, names)

    def _measure(self, run: Run) -> None:
        seen = [_Seen(layer) for layer in self._layers]
        with ExitStack() as stack, torch.no_grad():
            for one in seen:
                one.watch(stack)
            run()
        for index, one in enumerate(seen):
            sites = self.sites(index)
            if sites:
                found = one.branches([self._suggested(site) for site in sites])
                taps = [found, found] if isinstance(found, str) else found
                self._taps |= dict(zip(sites, taps, strict=True))


def _child(layer: nn.Module, names: Sequence[str]) -> nn.Module | None:
    return next((child for name in names if isinstance(child := getattr(layer, name, None), nn.Module)), None)


class _Seen:
    """What a block and its children did in a forward pass."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer
        self._given: Tensor | None = None
        self._made: Tensor | None = None
        self._outputs: dict[nn.Module, Tensor] = {}  # of children, in the order in which they were called
        self._again: set[nn.Module] = set()

    def watch(self, stack: ExitStack) -> None:
        def note_given(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._given = (args[0] if args else kwargs["hidden_states"]).clone()

        def note_made(module: nn.Module, args: Any, output: Any) -> None:
            self._made = hidden_of(output).clone()

        def note_child(module: nn.Module, args: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple | list) and output else output
            if module in self._outputs:
                self._again.add(module)
            if isinstance(hidden, Tensor):
                self._outputs[module] = hidden.clone()

        stack.callback(self._layer.register_forward_pre_hook(note_given, with_kwargs=True).remove)
        stack.callback(self._layer.register_forward_hook(note_made).remove)
        for child in self._layer.children():
            stack.callback(child.register_forward_hook(note_child).remove)

    def branches(self, named: Sequence[nn.Module | None]) -> tuple[Tap, Tap] | str:
        """The two branches, attention first; or why there are none."""
        if self._given is None or self._made is None:
            return "a text alone does not pass through this block"
        whole = self._made.numel()
        usable = {
            module: output.reshape(self._made.shape)
            for module, output in self._outputs.items()
            if output.numel() == whole and module not in self._again
        }
        known = [module for module in named if module in usable]
        pairs = list(_pairs(known, usable))
        for first, second in pairs:
            if self._sums(usable[first], usable[second]):
                return self._ordered(first, second, named[0])
        for first, second in pairs:
            if (factor := self._factor(usable[first] + usable[second])) is not None:
                scaled = [value * factor for value in (usable[first], usable[second])]
                if self._sums(*scaled):
                    return self._ordered(first, second, named[0], factor)
        return self._reason([usable[module] for module in known])

    def _sums(self, first: Tensor, second: Tensor) -> bool:
        """Whether input + both is the output, within the rounding of two sums."""
        assert self._given is not None and self._made is not None
        unit = torch.finfo(self._made.dtype).eps
        given, made = self._given.double(), self._made.double()
        size = given.abs() + first.double().abs() + second.double().abs()
        off = (given + first.double() + second.double() - made).abs()
        return bool((off <= _ROUNDING * unit * size + torch.finfo(torch.float32).tiny).all())

    def _factor(self, added: Tensor) -> float | None:
        """The constant of the block that its branches are multiplied by."""
        assert self._given is not None and self._made is not None
        added = added.double()
        size = float((added * added).sum())
        if not size:
            return None
        measured = float(((self._made.double() - self._given.double()) * added).sum()) / size
        constants = [value for value in vars(self._layer).values() if isinstance(value, float) and value]
        close = [value for value in constants if abs(value - measured) <= _CLOSE * abs(value)]
        return min(close, key=lambda value: abs(value - measured), default=None)

    def _ordered(
        self, first: nn.Module, second: nn.Module, attention: nn.Module | None, factor: float = 1.0
    ) -> tuple[Tap, Tap]:
        """Attention is the branch that begins with it: the one whose output comes at it or next after it."""
        order = list(self._outputs)
        at = order.index(attention) if attention in self._outputs else -1
        pair = sorted((first, second), key=lambda module: (order.index(module) < at, order.index(module)))
        return Tap(pair[0], factor=factor), Tap(pair[1], factor=factor)

    def _reason(self, known: Sequence[Tensor]) -> str:
        assert self._given is not None and self._made is not None
        kind = type(self._layer).__name__
        if len(known) < 2:
            return f"its block ({kind}) does not add what an attention and an MLP give"
        off = (self._given + known[0] + known[1] - self._made).abs().max()
        return (
            f"input + attention + MLP is not the output of its block ({kind}), off by {float(off):.2g} of "
            f"{float(self._made.abs().max()):.2g}, and no other outputs or constant of the block make up for it"
        )


def _pairs(known: Sequence[nn.Module], usable: dict[nn.Module, Tensor]) -> Iterator[tuple[nn.Module, nn.Module]]:
    """The named pair, then all others in the order of the calls."""
    if len(known) == 2:
        yield known[0], known[1]
    yield from combinations(usable, 2)
