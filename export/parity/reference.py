"""In which type PyTorch computes what an export is compared with."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from ...toolkit.model.options import AUTO, PlaceOptions

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM


def computing_wide(vlm: VLM, options: PlaceOptions) -> AbstractContextManager[None]:
    """Have ``vlm`` compute in float32 from its own weights, unless another type was asked for or they are wider.

    A graph holds the weights of the checkpoint and computes in its own precision, so that it is compared with the
    function that those weights are, not with PyTorch's rounding to the checkpoint's type.
    """
    stored = getattr(torch, vlm.stored_dtype if options.dtype == AUTO else options.dtype)
    return vlm.computing(torch.promote_types(stored, torch.float32) if options.dtype == AUTO else stored)
