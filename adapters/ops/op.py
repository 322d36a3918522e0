"""Ops: the pure tensor functions that PyTorch runs as hooks and ONNX as model-local functions.

An op's parameters are inputs of ``forward``, never attributes, so the same op serves every layer,
every dtype and every storage mode. Norms, dot products and gates are computed in float32 whatever
the model's dtype: an activation of 900 leaks 0.03 through a projection done in float16.

Contract for batches: rows are padded on the left, so the last prompt position is the last column.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, cast, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..artifact.sites import Phase, Scope
from ..errors import InvalidArtifact
from .affine import AffineMap
from .registry import Ops

Hidden = Float[Tensor, "batch seq d_model"]
Mask = Float[Tensor, "batch seq 1"]

_OPS = Ops("op")


class Op(nn.Module, ABC):
    """A pure tensor function on hidden states; a :class:`Corrector`, a :class:`Detector` or an :class:`Observer`.

    Class attributes:
        name: how the manifest and the graph call it (``safetykit::<name>``).
        params: names of the stored tensors; ``forward`` takes each by its name.
        runtime_inputs: names of per-call tensors of shape [batch, d_model], taken beside the parameters.
        extras: names of further results, kept per intervention: [batch] (a gate's margin) or [batch, d_model].
        outputs: further results with names of their own, so that a model holds one op with these: [batch] or
            [batch, any width], of floats or int64.
        ranked: parameters [d_model, rank] whose rank may differ between adapters for one graph.
        reads_earlier: ``forward`` takes ``earlier`` [batch, k·d_model] in float32 as well, where an intervention names
            k further sites to read: the states of their last positions, beside each other.
    """

    name: ClassVar[str]
    params: ClassVar[tuple[str, ...]]
    runtime_inputs: ClassVar[tuple[str, ...]] = ()
    extras: ClassVar[tuple[str, ...]] = ()
    outputs: ClassVar[tuple[str, ...]] = ()
    ranked: ClassVar[tuple[str, ...]] = ()
    reads_earlier: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        _OPS.add(cls)


class Corrector(Op):
    """An op that changes the hidden state.

    Class attributes:
        strength: the parameter that what the op adds to the state is proportional to, so that the op changes nothing
            where it is 0; None where there is none. What opens a gate is no strength.
    """

    strength: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        if cls.strength is not None and cls.strength not in cls.params:
            raise TypeError(f"{cls.__qualname__} has no parameter {cls.strength!r} that could be its strength.")
        super().__init_subclass__(**kwargs)

    @abstractmethod
    def forward(self, hidden: Hidden, scope: Mask, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Return ``(hidden', *extras, *outputs)``; ``hidden'`` keeps shape and dtype of ``hidden``.

        Args:
            scope: 1 where the op applies; the state is unchanged elsewhere.
            tensors: runtime inputs and parameters by name.
        """

    def forced_open(self) -> dict[str, float]:
        """Parameters, and the value of each, with which this op's gate is open whatever the state.

        None without a gate.
        """
        return {}

    def invariant(self, before: Hidden, after: Hidden, scope: Mask, **tensors: Tensor) -> Float[Tensor, ""] | None:
        """How far ``after`` is from what this op guarantees where ``scope`` is 1 (0 = exactly kept).

        Relative to the size of ``before``; None when the op guarantees nothing testable.
        """
        return None

    def affine(self, **tensors: Tensor) -> AffineMap | None:
        """The affine map this op is at every token that its scope covers; None when it is none."""
        return None


class Detector(Op):
    """An op that judges a prompt and leaves its hidden state alone; a model holds one."""

    outputs = ("risk",)

    @abstractmethod
    def forward(self, hidden: Hidden, **tensors: Tensor) -> Float[Tensor, " batch"]:
        """The log-odds of harm, in float32, read off the last position."""


class Observer(Op):
    """An op that reads the hidden state and leaves it alone; only its ``outputs`` matter."""

    @abstractmethod
    def forward(self, hidden: Hidden, scope: Mask, **tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the ``outputs``, read off the tokens where ``scope`` is 1."""


def get_op(name: str) -> Op:
    """A fresh instance of the op registered as ``name`` (it has no state).

    Raises:
        InvalidArtifact: no such op (an adapter from a newer version, or a damaged manifest).
    """
    return cast(Op, _OPS.get(name)())


def derive(suffix: str, make: Callable[[Any], object]) -> None:
    """When an op ``Name<suffix>`` is asked for, let ``make`` make it of the class of the op ``Name``."""
    _OPS.derive(suffix, make)


class ScopeMask(nn.Module):
    """Which tokens an intervention touches, as a mask.

    A call belongs to the prefill if it :func:`reads_prompt`: a one-token prompt does, and so does each chunk of a
    prompt that comes in several, but for a last one of a single token, which is taken for one of the answer.
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
            mask = mask * reads_prompt(hidden, past_length).to(torch.float32)
        elif self.phase == "decode":
            mask = mask * (~reads_prompt(hidden, past_length)).to(torch.float32)
        return mask


def reads_prompt(hidden: Hidden, past_length: Int[Tensor, ""]) -> Bool[Tensor, ""]:
    """Whether a call reads a prompt, or a further chunk of one: it has no past, or brings several tokens."""
    new = torch.scalar_tensor(hidden.shape[1], dtype=torch.int64, device=hidden.device)
    return (past_length == 0) | (new > 1)


def last_state(hidden: Hidden, earlier: Float[Tensor, "batch earlier"] | None) -> Float[Tensor, "batch width"]:
    """The last position of ``hidden`` behind those of earlier sites, in float32 (float64 stays)."""
    last = hidden[:, -1]
    last = last if last.dtype == torch.float64 else last.float()
    return last if earlier is None else torch.cat([earlier, last], dim=1)


def project(states: Float[Tensor, "... d_model"], basis: Float[Tensor, "d_model rank"]) -> Float[Tensor, "... d_model"]:
    """P x = V Vᵀ x for orthonormal columns V."""
    return (states @ basis) @ basis.transpose(0, 1)
