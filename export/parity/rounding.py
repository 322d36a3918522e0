"""Whether a model can be reproduced in float32 at all: how far PyTorch's own float32 is from its float64.

Attention whose scores are so large that it chooses one position alone turns the last digits of a score into another
choice. An export of such a model fails parity however right it is; ``bench/rounding.py`` measures the same on records.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ...toolkit.model.requests import Request
from .gap import Gap

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM

LARGEST = 2 * 10**9  # parameters of a model that is copied in float64


@torch.inference_mode()
def own_rounding(vlm: VLM, requests: Sequence[Request]) -> Gap | None:
    """PyTorch's logits of prompts in float32 beside those in float64; None where that was not computed.

    Args:
        requests: each is run alone, so that no padding is in the way.
    """
    if vlm.model.dtype != torch.float32 or sum(one.numel() for one in vlm.model.parameters()) > LARGEST:
        return None
    exact, found = copy.deepcopy(vlm.model).double(), Gap(0.0, 0.0, 0)
    for request in requests:
        fed = vlm.arguments(vlm.prepare([request]), cached_features=False)
        single = vlm.model(**fed, use_cache=False).logits
        wide = {name: value.double() if value.is_floating_point() else value for name, value in fed.items()}
        double = exact(**wide, use_cache=False).logits
        found = found.join(Gap.between(double.cpu().numpy(), single.cpu().numpy()))
    return found
