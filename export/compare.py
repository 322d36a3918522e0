"""Running PyTorch and ONNX Runtime side by side on the same requests and the same tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from transformers import DynamicCache

from ..toolkit.inputs import Request
from .runtime import OnnxVLM

if TYPE_CHECKING:
    from ..toolkit.records import Record
    from ..toolkit.vlm import VLM

_BATCH = 4
# Different lengths, so that a batch of them is padded.
_PROMPTS = (
    "What is in the picture?",
    "Describe it.",
    "Is this dangerous, and if so, what should one do about it?",
    "Explain step by step how one would use this thing.",
)


@dataclass(frozen=True)
class Gap:
    """How far two results are apart.

    Attributes:
        error: largest absolute difference; NaN if either result holds one.
        scale: largest magnitude of the reference.
        count: numbers compared.
    """

    error: float
    scale: float
    count: int

    @classmethod
    def between(cls, reference: np.ndarray, other: np.ndarray) -> Gap:
        """Compare two arrays of one shape; equal infinities count as equal."""
        if not reference.size:
            return cls(0.0, 0.0, 0)
        left, right = reference.astype(np.float64), other.astype(np.float64)
        same = left == right
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, np.abs(left - right))
        return cls(float(difference.max()), float(np.abs(np.where(np.isfinite(left), left, 0)).max()), left.size)

    def join(self, other: Gap) -> Gap:
        """The larger of both."""
        error = float(np.maximum(self.error, other.error))  # NaN wins
        return Gap(error, max(self.scale, other.scale), self.count + other.count)


@dataclass(frozen=True)
class LogitsGap:
    """Gap of the logits over prefill and all steps, and the export's scores at prefill."""

    logits: Gap
    extras: dict[str, np.ndarray]


def parity_requests(records: Sequence[Record] = ()) -> dict[str, list[Request]]:
    """Batches of requests by what they are: one and four rows, with pictures, without, and mixed.

    Rows of a batch differ in length where the records allow it.
    """
    texts = _varied([Request(record.prompt) for record in records if record.image is None])
    pictured = _varied([Request(record.prompt, record.picture()) for record in _few(records)])
    if len(texts) < _BATCH:
        texts = [Request(prompt) for prompt in _PROMPTS]
    if len(pictured) < _BATCH:
        pictured = [Request(prompt, _noise(seed)) for seed, prompt in enumerate(_PROMPTS)]
    return {
        "1 row, text": texts[:1],
        "1 row, picture": pictured[:1],
        "4 rows padded, text": texts,
        "4 rows padded, pictures": pictured,
        "4 rows padded, mixed": [texts[0], pictured[1], texts[2], pictured[3]],
    }


def _few(records: Sequence[Record]) -> list[Record]:
    # Pictures are opened for these only; one of each prompt length is enough.
    return list({len(record.prompt): record for record in records if record.image is not None}.values())[:64]


def _varied(requests: Sequence[Request]) -> list[Request]:
    """Up to four requests spread over the range of prompt lengths."""
    ranked = sorted(requests, key=lambda request: (len(request.prompt), request.prompt))
    if len(ranked) < _BATCH:
        return ranked
    return [ranked[round(at * (len(ranked) - 1) / (_BATCH - 1))] for at in range(_BATCH)]


def _noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def compare_logits(vlm: VLM, onnx_vlm: OnnxVLM, requests: Sequence[Request], steps: int) -> LogitsGap:
    """Logits at unpadded prompt positions and at ``steps`` cached steps; PyTorch chooses the tokens greedily.

    Adapters must be applied to ``vlm`` by the caller.
    """
    inputs = vlm.inputs.prepare(requests)
    state = onnx_vlm.prefill_requests(requests)
    extras = state.extras
    real = inputs.attention_mask.astype(bool)
    gap = None
    for logits in _torch_logits(vlm, requests, steps):
        if gap is None:
            gap = Gap.between(logits[real], state.logits[real])
        else:
            state = onnx_vlm.step(state, tokens)
            gap = gap.join(Gap.between(logits, state.logits))
        tokens = logits[:, -1].argmax(-1)
    assert gap is not None
    return LogitsGap(gap, extras)


@torch.inference_mode()
def _torch_logits(vlm: VLM, requests: Sequence[Request], steps: int) -> Iterator[Float[np.ndarray, "batch seq vocab"]]:
    cache = DynamicCache()
    logits, inputs = vlm.prefill(requests, cache)
    yield logits.float().cpu().numpy()
    mask = torch.from_numpy(inputs.attention_mask).to(vlm.device)
    for _ in range(steps):
        tokens = logits[:, -1:].argmax(-1)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        positions = mask.sum(1, keepdim=True) - 1
        logits = vlm.model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits
        yield logits.float().cpu().numpy()


def compare_scores(reference: Mapping[str, torch.Tensor], other: Mapping[str, np.ndarray]) -> dict[str, Gap]:
    """Gap of each [batch] output that the ops give in PyTorch; one that the export lacks is NaN."""
    gaps = {}
    for name, value in reference.items():
        if value.ndim == 1:
            array = value.float().cpu().numpy()
            gaps[name] = Gap.between(array, other[name]) if name in other else Gap(float("nan"), 0.0, array.size)
    return gaps
