"""Gates: when a gated op decides whether it acts, and for how long that decision stands.

``per-token``  The gate is read off the last position of every call: of the prompt at prefill, of each new token
               after it.
``held``       The gate is decided by the prompt and stands while the answer is generated. A call decides when it is
               the first one (no past), or when it brings more than one token: a further chunk of the prompt, or the
               user's next turn, is judged anew by its own last position. A call of one token after others holds
               what was decided. So the last chunk of a prompt decides, unless it is a single token, which leaves
               the decision to the chunk before.

With no past, a prompt of one token decides as any other. Drafting several tokens per call (speculative decoding)
would decide anew at each draft: a held gate then follows the draft, not the prompt.
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
    """

    extras: ClassVar[tuple[str, ...]] = ("score",)

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
    """Whether a call decides a held gate."""
    return past_length == 0 or new_tokens > 1


class HeldGate(nn.Module):
    """A gated op whose gate is decided by the prompt; ``held`` is the margin that was decided before."""

    def __init__(self, op: GatedOp) -> None:
        super().__init__()
        self.op = op

    def margin(
        self, hidden: Hidden, *, decides: Bool[Tensor, ""], held: Float[Tensor, " batch"], **tensors: Tensor
    ) -> Float[Tensor, " batch"]:
        """The margin that holds for this call."""
        return torch.where(decides, self.op.margin(hidden, **tensors), held)

    def forward(
        self,
        hidden: Hidden,
        scope: Mask,
        *,
        decides: Bool[Tensor, ""],
        held: Float[Tensor, " batch"],
        **tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """As the op's; its ``score`` is the margin that holds, to be handed to the next call."""
        return self.op.act(hidden, scope, self.margin(hidden, decides=decides, held=held, **tensors), **tensors)
