"""Correctors that a linear probe opens: any op, acting on a row only where the probe's log-odds exceed a threshold.

    h' = C(h)   where (wᵀ(h^a, h^b, …)_last + b) − τ > 0,   h bit for bit elsewhere

C is the corrector; of an op with a gate of its own, the probe's margin takes that gate's place. The probe reads the
last positions of blocks before the op's own, and of that one; where it does not read the op's own block, w is 0 there.

The op of a corrector ``Name`` is called ``NameByProbe``; it is made from the corrector when it is first asked for.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from .gating import GatedOp
from .op import Corrector, Hidden, Mask, Op, derive, last_state

SUFFIX = "ByProbe"
PROBE = ("weight", "bias", "threshold")


class ProbeGate(GatedOp):
    """Shared shape: (wᵀ(h^a, h^b, …)_last + b) − τ opens the gate."""

    params: ClassVar[tuple[str, ...]] = PROBE
    gate_params = PROBE
    reads_earlier = True

    def margin(
        self,
        hidden: Hidden,
        *,
        weight: Tensor,
        bias: Tensor,
        threshold: Tensor,
        earlier: Tensor | None = None,
        **_: Tensor,
    ) -> Float[Tensor, " batch"]:
        return last_state(hidden, earlier) @ weight + (bias - threshold)

    def magnitude(
        self, hidden: Hidden, *, weight: Tensor, earlier: Tensor | None = None, **_: Tensor
    ) -> Float[Tensor, " batch"]:
        size: Tensor = last_state(hidden, earlier).to(weight.dtype).square().mean(-1).sqrt() * weight.norm()
        return size


class _ByProbe(ProbeGate):
    """An op that acts where the probe's gate is open; its parameters stand beside the probe's."""

    corrector: ClassVar[type[Corrector]]

    def __init__(self) -> None:
        super().__init__()
        self.op = self.corrector()

    def act(self, hidden: Hidden, scope: Mask, margin: Tensor, **tensors: Tensor) -> tuple[Tensor, ...]:
        own = self._own(tensors)
        if isinstance(self.op, GatedOp):
            return self.op.act(hidden, scope, margin, **own)
        (moved,) = self.op(hidden, scope, **own)
        return torch.where((margin > 0)[:, None, None], moved, hidden), margin

    def kept(self, before: Hidden, after: Hidden, scope: Mask, margin: Tensor, **tensors: Tensor) -> Tensor:
        """Rows with a closed gate are as they were, and in the others the corrector's own promise is kept."""
        own = self._own(tensors)
        opened = (margin > 0)[:, None, None]
        still = (after.double() - before.double()).abs() * ~opened
        off: Tensor = still.max() / before.double().norm(dim=-1).max()
        if isinstance(self.op, GatedOp):
            promised = self.op.kept(before, after, scope, margin, **own)
        else:
            promised = self.op.invariant(before, after, scope * opened, **own)
        return off if promised is None else torch.maximum(off, promised.to(off.dtype))

    def _own(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if name not in (*PROBE, "earlier")}


@cache
def by_probe(corrector: type[Op]) -> type[GatedOp] | None:
    """The class of a corrector that a probe opens; None where it takes or gives more than states, or changes none."""
    if not issubclass(corrector, Corrector) or issubclass(corrector, _ByProbe):
        return None
    if corrector.runtime_inputs or corrector.outputs or set(corrector.extras) - {"score"}:
        return None
    own = corrector.gate_params if issubclass(corrector, GatedOp) else ()
    kept = tuple(name for name in corrector.params if name not in own)
    described = {
        "__doc__": f"{corrector.name}, where a probe of one or more blocks opens it.",
        "__module__": __name__,
        "name": corrector.name + SUFFIX,
        "corrector": corrector,
        "params": (*kept, *PROBE),
        "ranked": corrector.ranked,
        "strength": corrector.strength,
        "holdable": getattr(corrector, "holdable", True),
    }
    return cast(type[GatedOp], type(corrector.name + SUFFIX, (_ByProbe,), described))


derive(SUFFIX, by_probe)
