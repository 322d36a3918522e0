"""Whether an answer is one that the unmodified model could have given, where no record says what is right.

A strong intervention can make a model babble. Babble is no refusal, so that without expected answers it would pass for
an answer; the unmodified model finds it far less likely than anything it says itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import log_softmax

from ..model.requests import Request

if TYPE_CHECKING:
    from ..model.vlm import VLM

MARGIN = 2.0  # nats a token: seven times less likely, token for token, than the oddest of the model's own answers
_BATCH = 4  # logits of all positions are kept


def surprise(vlm: VLM, requests: Sequence[Request], answers: Sequence[str]) -> list[float]:
    """Mean negative log-likelihood, in nats a token, of answers to requests under the model as it runs.

    Returns:
        One number per request; infinity for an answer without a token.
    """
    found: list[float] = []
    for start in range(0, len(requests), _BATCH):
        asked = requests[start : start + _BATCH]
        answered = [replace(one, answer=text) for one, text in zip(asked, answers[start : start + _BATCH], strict=True)]
        before = vlm.prepare(asked).attention_mask.sum(1)
        logits, inputs = vlm.prefill(answered)
        ids = inputs.input_ids
        for row, count in enumerate(inputs.attention_mask.sum(1) - before):
            if count <= 0:
                found.append(math.inf)
                continue
            at = np.arange(ids.shape[1] - count, ids.shape[1])  # rows are padded on the left
            likely = log_softmax(logits[row, at - 1].float().numpy(force=True), axis=-1)
            found.append(float(-likely[np.arange(count), ids[row, at]].mean()))
    return found
