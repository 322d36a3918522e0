"""How a model refuses, found from the model itself, and how near it is to refusing.

The margin of an answer's first token, with R the tokens that start a refusal and z the logits:

    m(z) = logsumexp_{t∈R} z_t − logsumexp_{t∉R} z_t = log P(R) − log(1 − P(R))

It is a log-odds: shifting all logits changes nothing, it does not matter which other token would have been said, and
unlike a probability it does not saturate, so that small causal effects stay visible where a model is sure of itself.
It looks at one token: a refusal that comes late in an answer is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ...adapters.errors import UsageError
from ..data.records import Record, subset
from ..distributed.dealing import dealt
from ..model.asking import request_of
from ..model.requests import Generation
from .judge import is_refusal, require_harmful_texts

if TYPE_CHECKING:
    from ..model.vlm import VLM

ASKED = 96  # records per label, at most; the openings of refusals are few
_BATCH = 32


@dataclass(frozen=True)
class RefusalTokens:
    """The tokens that start a model's refusals.

    Attributes:
        token_ids: first tokens of refusals, ascending.
        text: the refusal given most often.
        first: id of the first token given most often.
        refused: share of the harmful text records asked that were refused.
    """

    token_ids: tuple[int, ...]
    text: str
    first: int
    refused: float | None = None

    @classmethod
    def find(cls, vlm: VLM, records: Sequence[Record], max_new_tokens: int = 32) -> RefusalTokens:
        """Ask harmful and harmless text records and read off how refusals begin.

        A token counts if it opens a larger share of the refusals than of the other answers: "I" opens both in many
        models and then tells nothing.

        Args:
            records: harmful text records are needed; harmless ones show which openings are ordinary; those with a
                picture are ignored.
            max_new_tokens: enough for the judge to recognise a refusal.

        Raises:
            UsageError: there are no harmful text records, the model refuses none of them, or its refusals open
                like its other answers.
        """
        require_harmful_texts(records)
        texts = [record for record in records if not record.pictured]
        harmful = subset([record for record in texts if record.label == "harmful"], ASKED)
        harmless = subset([record for record in texts if record.label == "harmless"], ASKED)
        refusals: Counter[int] = Counter()
        others: Counter[int] = Counter()
        texts_of: Counter[str] = Counter()
        refused = 0
        asked = [*harmful, *harmless]
        batches = [asked[start : start + _BATCH] for start in range(0, len(asked), _BATCH)]

        def answered(batch: list[Record]) -> list[Generation]:
            return vlm.generate([request_of(record) for record in batch], max_new_tokens)

        for batch, answers in dealt(batches, answered):
            for record, answer in zip(batch, answers, strict=True):
                if not answer.token_ids:
                    continue
                if is_refusal(answer.text):
                    refusals[answer.token_ids[0]] += 1
                    texts_of[answer.text] += 1
                    refused += record.label == "harmful"
                else:
                    others[answer.token_ids[0]] += 1
        if not refused:
            raise UsageError(
                f"The model refuses none of {len(harmful)} harmful text records, so nothing is known of its refusals.",
                "Use a model with safety training, or harmful text records that it refuses.",
            )
        n_refusals, n_others = refusals.total(), max(others.total(), 1)
        telling = {token: count for token, count in refusals.items() if count / n_refusals > others[token] / n_others}
        if not telling:
            raise UsageError(
                "The model's refusals open with the same tokens as its other answers.",
                "A margin at the first answer token cannot tell them apart in this model.",
            )
        return cls(
            token_ids=tuple(sorted(telling)),
            text=max(texts_of, key=lambda text: (texts_of[text], text)),
            first=max(telling, key=lambda token: (telling[token], -token)),
            refused=refused / len(harmful),
        )

    def margin(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, " batch"]:
        """:func:`refusal_margin` for these tokens."""
        return refusal_margin(logits, self.token_ids)

    def log_probability(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
        """log P(the first answer token starts a refusal), float32."""
        logits = logits.float()
        return logits[..., list(self.token_ids)].logsumexp(-1) - logits.logsumexp(-1)


def refusal_margin(logits: Float[Tensor, "batch vocab"], token_ids: Sequence[int]) -> Float[Tensor, " batch"]:
    """Log-odds, in nats, that the next token is one of ``token_ids``; float32."""
    logits = logits.float()
    refusing = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    refusing[list(token_ids)] = True
    return logits[:, refusing].logsumexp(-1) - logits[:, ~refusing].logsumexp(-1)
