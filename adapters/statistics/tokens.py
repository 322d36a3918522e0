"""Which tokens of a prompt stand for it: hidden states at every position, and a choice among them before pooling.

``kernel``: tokens are ranked by a kernel witness, the difference of two kernel mean embeddings::

    w(h) = mean_i k(h, m_i) − mean_j k(h, b_j),   k(x, y) = exp(−‖x − y‖² / 2σ²)

with reference tokens m of harmful and b of harmless records, and the share of each modality that is most like
harmful records is pooled, in records of either label. CARE's sources name "kernel attribution scores" and the
shares (an eighth of the visual tokens, a fifth of the text tokens) and leave the kernel open: this witness and the
median heuristic for σ are our reading. Ranking by |w| instead picks the tokens that all records share, where both
embeddings are large, and missed planted tokens almost always; pooled reference states miss weak ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..artifact.manifest import BaseInfo
from ..artifact.sites import Site
from ..protocols import Example
from .choices import Modality


@dataclass(frozen=True)
class TokenBatch:
    """Hidden states at every position of some records.

    Attributes:
        records: one per row.
        states: per site [batch, seq, d_model], in float32 on the CPU.
        visual: image tokens.
        textual: the other tokens; padding is neither.
    """

    records: Sequence[Example]
    states: Mapping[Site, Float[Tensor, "batch seq d_model"]]
    visual: Bool[Tensor, "batch seq"]
    textual: Bool[Tensor, "batch seq"]

    def mask(self, modality: Modality) -> Bool[Tensor, "batch seq"]:
        """The tokens of one modality."""
        return self.visual if modality == "visual" else self.textual


def whole(batch: TokenBatch) -> TokenBatch:
    """Everything is kept."""
    return batch


class TokenSource(Protocol):
    """A model whose hidden states can be streamed token by token (``toolkit.VLM``)."""

    @property
    def base(self) -> BaseInfo: ...

    def token_states(
        self,
        records: Sequence[Example],
        sites: Sequence[Site],
        keep: Callable[[TokenBatch], Any] = ...,
        *,
        with_response: bool = False,
    ) -> Iterator[Any]:
        """Run the records, optionally followed by their responses, and yield what is kept of each batch of states.

        Args:
            keep: called where the batch was run, perhaps in another process: its result is to be small, and to depend
                on the batch alone. By default the batch itself is kept.
        """
        ...


def sample(records: Sequence[Example], size: int) -> list[Example]:
    """At most ``size`` records: those with the smallest hash of their id, whatever their order."""
    return sorted(records, key=lambda record: hashlib.sha256(record.id.encode()).digest())[:size]


@dataclass(frozen=True)
class KernelWitness:
    """Scores of tokens against reference states; see the module's docstring.

    Attributes:
        harmful, harmless: [count, d_model], states of reference tokens.
        variance: σ².
    """

    harmful: Float[Tensor, "harmful d_model"]
    harmless: Float[Tensor, "harmless d_model"]
    variance: float

    @classmethod
    def between(
        cls, harmful: Float[Tensor, "harmful d_model"], harmless: Float[Tensor, "harmless d_model"]
    ) -> KernelWitness:
        """With σ the median distance between two reference states (Gretton et al. 2012, section 8)."""
        together = torch.cat([harmful, harmless]).float()
        distances = torch.pdist(together)
        median = float(distances.median()) if len(distances) else 0.0
        return cls(harmful.float(), harmless.float(), median**2 if median > 0 else 1.0)

    def scores(self, states: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest"]:
        """w(h): above 0 where a token is more like harmful records."""
        rows = states.reshape(-1, states.shape[-1]).float()
        embeddings = [
            # Some tokens lie many σ from all references: float64 keeps such small values apart.
            (torch.cdist(rows, reference).double().square() / (-2 * self.variance)).exp().mean(1)
            for reference in (self.harmful, self.harmless)
        ]
        return (embeddings[0] - embeddings[1]).reshape(states.shape[:-1])


def pick(
    states: Float[Tensor, "batch seq d_model"], mask: Bool[Tensor, "batch seq"], most: int, generator: torch.Generator
) -> Float[Tensor, "picked d_model"]:
    """Up to ``most`` masked tokens of each row, drawn at random."""
    draws = torch.rand(mask.shape, generator=generator).masked_fill(~mask, -1.0)
    best = draws.topk(min(most, mask.shape[1]), dim=1)
    rows = torch.arange(len(mask))[:, None].expand_as(best.indices)
    return states[rows, best.indices][best.values >= 0]


def pool_best(
    states: Float[Tensor, "batch seq d_model"],
    mask: Bool[Tensor, "batch seq"],
    scores: Float[Tensor, "batch seq"] | None = None,
    share: float = 1.0,
) -> Float[Tensor, "batch d_model"]:
    """Mean state of the ``share`` of each row's masked tokens with the largest scores, at least one.

    Without scores all masked tokens count. A row without masked tokens gives zeros.
    """
    if scores is None:
        chosen = mask
    else:
        order = scores.masked_fill(~mask, -torch.inf).argsort(dim=1, descending=True, stable=True)
        place = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
        chosen = mask & (place < (share * mask.sum(1, keepdim=True)).ceil())
    weights = chosen.to(states.dtype)
    weights = weights / weights.sum(1, keepdim=True).clamp_min(1)
    return torch.einsum("bs,bsd->bd", weights, states)
