"""The streaming guard's ops: a push along the refusal direction, gated by a probe of several layers.

Formulas: :mod:`.guard`. Both read the probe's margin s − τ off the last position of every call.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from ..ops.probed import PROBE, ProbeGate
from ..ops.pushing import GatedPush

FULL = 4.0  # log-odds above the threshold at which a ramped push has reached twice its strength


class _ProbedPush(ProbeGate, GatedPush):
    """Shared shape: a probe opens the gate, and the push is a multiple of one direction."""

    params = (*PROBE, "direction", "alpha")

    @abstractmethod
    def length(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The push's length in units of α·direction."""

    def push(self, margin: Tensor, direction: Tensor, alpha: Tensor) -> Tensor:
        return alpha * self.length(margin)[:, None, None] * direction


class RampedPush(_ProbedPush):
    """h + ½α·clamp(s − τ, 0, 4)·r: the surer the probe, the stronger (``ramp``)."""

    name = "RampedPush"
    holdable = False

    def length(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return torch.where(margin < FULL, margin.relu(), FULL) / 2


class ProbedPush(_ProbedPush):
    """h + α·1[s > τ]·r (``once``, with a gate that opens once)."""

    name = "ProbedPush"

    def length(self, margin: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return (margin > 0).to(margin.dtype)
