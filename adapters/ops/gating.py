"""Gates: when a gated op decides whether it acts, and for how long that decision stands.

``per-token``  The gate is read off the last position of every call: of the prompt at prefill, of each new token
               after it.
``held``       The gate is decided by the prompt and stands while the answer is generated. A call decides when it is
               the first one (no past), or when it brings more than one token: a further chunk of the prompt, or the
               user's next turn, is judged anew by its own last position. A call of one token after others holds
               what was decided. So the last chunk of a prompt decides, unless it is a single token, which leaves
               the decision to the chunk before.

``once``       The gate opens at the first call whose last position says so, and is closed for the rest of the answer.
               What is handed on is the largest margin so far; a call that decides begins anew.

With no past, a prompt of one token decides as any other. Drafting several tokens per call (speculative decoding)
would decide anew at each draft: such a gate then follows the draft, not the prompt.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .op import Corrector, Hidden, Mask


class GatedOp(Corrector):
    """An op that acts on a row of the batch only where its gate is open.

    ``score`` [batch] is the gate's margin: open where it is positive. All methods take the parameters by name; those of
    the gate leave the others out of account.

    Class attributes:
        gate_params: parameters that the gate alone reads.
        holdable: what it does depends on whether its gate is open, not on the margin's size.
    """

    extras: ClassVar[tuple[str, ...]] = ("score",)
    gate_params: ClassVar[tuple[str, ...]] = ()
    holdable: ClassVar[bool] = True

    def forced_open(self) -> dict[str, float]:
        return {"threshold": -1e30} if "threshold" in self.params else {}

    @abstractmethod
    def margin(self, hidden: Hidden, **tensors: Tensor) -> Float[Tensor, " batch"]:
        """How far inside the gate the last position lies; ``tensors`` are the stored parameters."""

    @abstractmethod
    def magnitude(self, hidden: Hidden, **tensors: Tensor) -> Float[Tensor, " batch"]:
        """Size of what ``margin`` adds up: a state that is off by a share of its size moves the margin by about that
        share of this, however much of it cancels."""

    @abstractmethod
    def act(
        self, hidden: Hidden, scope: Mask, margin: Float[Tensor, " batch"], **tensors: Tensor
    ) -> tuple[Tensor, ...]:
        """``forward`` with the gate given; ``tensors`` hold the runtime inputs, too."""

    def forward(self, hidden: Hidden, scope: Mask, **tensors: Tensor) -> tuple[Tensor, ...]:
        return self.act(hidden, scope, self.margin(hidden, **tensors), **tensors)

    def kept(
        self, before: Hidden, after: Hidden, scope: Mask, margin: Float[Tensor, " batch"], **tensors: Tensor
    ) -> Float[Tensor, ""] | None:
        """``invariant`` with the gate given."""
        return None

    def invariant(self, before: Hidden, after: Hidden, scope: Mask, **tensors: Tensor) -> Float[Tensor, ""] | None:
        margin = self.margin(before.double(), **{name: tensor.double() for name, tensor in tensors.items()})
        return self.kept(before, after, scope, margin, **tensors)


def decides(past_length: int, new_tokens: int) -> bool:
    """Whether a call decides a held gate: it reads a prompt or a part of one, see :func:`.op.reads_prompt`."""
    return past_length == 0 or new_tokens > 1


class HeldGate(nn.Module):
    """A gated op whose decision reaches later calls; ``held`` is the margin that the call before handed on.

    Args:
        once: the gate opens once, see above.
    """

    def __init__(self, op: GatedOp, *, once: bool = False) -> None:
        super().__init__()
        self.op, self.once = op, once

    def margin(
        self, hidden: Hidden, *, decides: Bool[Tensor, ""], held: Float[Tensor, " batch"], **tensors: Tensor
    ) -> Float[Tensor, " batch"]:
        """The margin by which this call acts."""
        return self._margins(hidden, decides=decides, held=held, **tensors)[0]

    def _margins(
        self, hidden: Hidden, *, decides: Bool[Tensor, ""], held: Float[Tensor, " batch"], **tensors: Tensor
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """That by which this call acts, and that which is handed on."""
        margin = self.op.margin(hidden, **tensors).to(held.dtype)
        if not self.once:
            holds = torch.where(decides, margin, held)
            return holds, holds
        spent = ~decides & (held > 0)
        return torch.where(spent, -held, margin), torch.where(decides, margin, torch.maximum(held, margin))

    def forward(
        self,
        hidden: Hidden,
        scope: Mask,
        *,
        decides: Bool[Tensor, ""],
        held: Float[Tensor, " batch"],
        **tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """As the op's; its ``score`` is the margin to be handed to the next call."""
        acting, handed_on = self._margins(hidden, decides=decides, held=held, **tensors)
        results = list(self.op.act(hidden, scope, acting, **tensors))
        results[1 + self.op.extras.index("score")] = handed_on
        return tuple(results)
