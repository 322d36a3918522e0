"""Ops: the pure tensor functions that PyTorch runs as hooks and ONNX as model-local functions.

An op's parameters are inputs of ``forward``, never attributes, so the same op serves every layer,
every dtype and every storage mode. Norms, dot products and gates are computed in float32 whatever
the model's dtype: an activation of 900 leaks 0.03 through a projection done in float16.

Contract for batches: rows are padded on the left, so the last prompt position is the last column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..artifact.sites import Phase, Scope
from ..errors import InvalidArtifact
from .affine import AffineMap

Hidden = Float[Tensor, "batch seq d_model"]
Mask = Float[Tensor, "batch seq 1"]

_REGISTRY: dict[str, type[Op]] = {}


class Op(nn.Module, ABC):
    """A pure tensor function on hidden states.

    Class attributes:
        name: how the manifest and the graph call it (``safetykit::<name>``).
        params: names of the stored tensors, in the order ``forward`` takes them.
        runtime_inputs: names of per-call tensors of shape [batch, d_model], before the parameters.
        extras: names of further outputs: [batch] (a score or gate margin), or [batch, any width] of floats or int64.
        detects: leaves the hidden state as it is; its extra ``risk`` [batch] is the log-odds of harm.
        observes: leaves the hidden state as it is; only its extras matter.
        plain_extras: graph outputs bear the bare names of its extras, so a model holds one op with these.
        ranked: parameters [d_model, rank] whose rank may differ between adapters for one graph.
    """

    name: ClassVar[str]
    params: ClassVar[tuple[str, ...]]
    runtime_inputs: ClassVar[tuple[str, ...]] = ()
    extras: ClassVar[tuple[str, ...]] = ()
    detects: ClassVar[bool] = False
    observes: ClassVar[bool] = False
    plain_extras: ClassVar[bool] = False
    ranked: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        name = getattr(cls, "name", None)
        if name is None:  # an abstract family, not an op
            return
        if name in _REGISTRY:
            raise TypeError(f"Two ops are called {name!r}: {_REGISTRY[name].__qualname__} and {cls.__qualname__}.")
        _REGISTRY[name] = cls

    @abstractmethod
    def forward(self, hidden: Hidden, scope: Mask, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return ``(hidden', *extras)``; ``hidden'`` keeps shape and dtype of ``hidden``."""

    def forced_open(self) -> dict[str, float]:
        """Parameters, and the value of each, with which this op's gate is open whatever the state.

        None without a gate.
        """
        return {}

    def invariant(self, before: Hidden, after: Hidden, scope: Mask, *tensors: Tensor) -> Float[Tensor, ""] | None:
        """How far ``after`` is from what this op guarantees where ``scope`` is 1 (0 = exactly kept).

        Relative to the size of ``before``; None when the op guarantees nothing testable.
        """
        return None

    def affine(self, *tensors: Tensor) -> AffineMap | None:
        """The affine map this op is at every token that its scope covers; None when it is none."""
        return None


def get_op(name: str) -> Op:
    """The op registered as ``name``.

    Raises:
        InvalidArtifact: no such op (an adapter from a newer version, or a damaged manifest).
    """
    from .. import methods  # noqa: F401  importing a method registers its ops

    if name not in _REGISTRY:
        raise InvalidArtifact(
            f"Unknown op {name!r}.", f"This version knows {', '.join(sorted(_REGISTRY))}; update safetykit."
        )
    return _REGISTRY[name]()


class ScopeMask(nn.Module):
    """Which tokens an intervention touches, as a mask.

    ``phase`` is decided by the length of the KV cache, not by the number of new tokens: a one-token
    prompt is a prefill. A prompt fed in several chunks counts as prefill in its first chunk only.
    """

    def __init__(self, scope: Scope, phase: Phase) -> None:
        super().__init__()
        if scope not in get_args(Scope) or phase not in get_args(Phase):
            raise InvalidArtifact(f"Unknown scope {scope!r} or phase {phase!r}.", "The manifest is damaged.")
        self.scope, self.phase = scope, phase

    def forward(self, hidden: Hidden, past_length: Int[Tensor, ""], vision_mask: Bool[Tensor, "batch seq"]) -> Mask:
        """1 where the op applies, 0 where the hidden state must stay as it is."""
        ones = torch.ones_like(hidden[..., :1], dtype=torch.float32)
        if self.scope == "last":
            position = torch.arange(hidden.shape[1], device=hidden.device)
            mask = ones * (position == hidden.shape[1] - 1).to(torch.float32)[None, :, None]
        elif self.scope == "vision":
            mask = ones * vision_mask.to(torch.float32)[..., None]
        elif self.scope == "text":
            mask = ones * (~vision_mask).to(torch.float32)[..., None]
        else:
            mask = ones
        if self.phase == "prefill":
            mask = mask * (past_length == 0).to(torch.float32)
        elif self.phase == "decode":
            mask = mask * (past_length > 0).to(torch.float32)
        return mask


def project(states: Float[Tensor, "... d_model"], basis: Float[Tensor, "d_model rank"]) -> Float[Tensor, "... d_model"]:
    """P x = V Vᵀ x for orthonormal columns V."""
    return (states @ basis) @ basis.transpose(0, 1)
