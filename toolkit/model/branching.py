"""Running a branch in PyTorch: the decoder's own blocks, called a second time inside one prefill."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ...adapters.artifact.sites import Site
from ...adapters.ops.branch import Branch
from .outputs import hidden_of
from .parts import Parts

_CACHES = ("past_key_values", "past_key_value")


class BranchRun:
    """Keeps what a branch needs of a prefill, and runs it.

    Blocks are called as modules, so that the hooks of correctors act in the branch as well, with the masks and
    positions that the answer's own pass gave them. They get no KV cache: before the branch, it was empty. Features that
    join the stream between blocks (``Family.scattered``) join the branch there as well.

    Attributes:
        running: whether blocks are being called by the branch just now.
    """

    def __init__(self, parts: Parts, branch: Branch) -> None:
        self.running = False
        self._op = branch.make_op()
        self._sites = {site.layer: parts.module(site) for site in (branch.safety, branch.fused)}
        self._safety, self._fused = branch.safety.layer, branch.fused.layer
        assert self._safety is not None
        self._blocks = list(parts.layers)[self._safety + 1 :]
        self._norm = parts.module(Site("final_norm"))
        self._features_join = bool(parts.family.scattered)
        self._tensors = branch.tensors
        self._states: dict[int | None, Tensor] = {}
        self._calls: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._joining: dict[nn.Module, Tensor] = {}

    def watch(self, stack: ExitStack, wanted: Callable[[], bool]) -> None:
        """Register hooks, after those of the correctors; what they see is kept where ``wanted`` says so."""

        def keep_state(layer: int | None) -> Callable[..., None]:
            def keep(module: nn.Module, args: Any, output: Any) -> None:
                if wanted() and not self.running:
                    self._states[layer] = hidden_of(output)

            return keep

        def keep_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if wanted() and not self.running:
                self._calls[module] = args[1:], {**kwargs, **{name: None for name in _CACHES if name in kwargs}}

        before: list[Tensor] = []  # the output of the block before

        def keep_output(module: nn.Module, args: Any, output: Any) -> None:
            before[:] = [hidden_of(output)]

        def keep_joining(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if wanted() and not self.running:
                given = args[0] if args else kwargs["hidden_states"]
                self._joining[module] = given - before[0].to(given.device)

        if self._features_join:
            for block in (self._sites[self._safety], *self._blocks):
                stack.callback(block.register_forward_hook(keep_output).remove)
            for module in (*self._blocks, self._norm):
                stack.callback(module.register_forward_pre_hook(keep_joining, with_kwargs=True).remove)
        for layer, module in self._sites.items():
            stack.callback(module.register_forward_hook(keep_state(layer)).remove)
        for block in self._blocks:
            stack.callback(block.register_forward_pre_hook(keep_call, with_kwargs=True).remove)

    def risk(self) -> Float[Tensor, " batch"]:
        """Log-odds of harm of the prefill that the hooks have just seen, with gradients if that has recorded them."""
        self.running = True
        try:
            safety = self._states[self._safety]
            hidden = self._op.start(safety, self._states[self._fused].to(safety.device))
            for block in self._blocks:
                args, kwargs = self._calls[block]
                options = {name: value for name, value in kwargs.items() if name not in ("hidden_states", "use_cache")}
                hidden = hidden_of(block(self._joined(block, hidden), *args, **options))
            normed = self._norm(self._joined(self._norm, hidden))
            return self._op.risk(normed, **{name: tensor.to(normed.device) for name, tensor in self._tensors.items()})
        finally:
            self.running = False
            self._states.clear()
            self._calls.clear()
            self._joining.clear()

    def _joined(self, module: nn.Module, hidden: Tensor) -> Tensor:
        return hidden + self._joining[module].to(hidden.device) if self._features_join else hidden
