"""Running PyTorch and ONNX Runtime side by side on the same requests and the same tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from transformers import DynamicCache

from ...toolkit.model.requests import Request
from ..names import RETRIEVAL_QUERY, RETRIEVED_SCORES
from ..runtime.onnx_vlm import OnnxVLM
from .gap import Gap

if TYPE_CHECKING:
    from ...toolkit.data.records import Record
    from ...toolkit.model.hooks import AppliedAdapters
    from ...toolkit.model.vlm import VLM

CACHED_STEPS = 32
_BATCH = 4
# Different lengths, so that a batch of them is padded.
_PROMPTS = (
    "What is in the picture?",
    "Describe it.",
    "Is this dangerous, and if so, what should one do about it?",
    "Explain step by step how one would use this thing.",
)


@dataclass(frozen=True)
class LogitsGap:
    """Gap of the logits over prefill and all steps, and the export's scores at prefill.

    Attributes:
        forced: of the last prompt position of rows whose refusal PyTorch enforces; None without such rows. Its
            logits are constants, far larger than real ones: they have no part in ``logits``.
    """

    logits: Gap
    extras: dict[str, np.ndarray]
    forced: Gap | None = None


def parity_requests(
    records: Sequence[Record] = (), opened: Collection[str] = (), *, several: bool = False
) -> dict[str, list[Request]]:
    """Batches of requests by what they are: one and four rows, with pictures, without, and mixed.

    Rows of a batch differ in length, so that they are padded, and half of them open a gate if any do.

    Args:
        opened: ids of records known to open a gate; by default harmful ones are taken to.
        several: add a batch with two pictures in a prompt, and pictures of other sizes.
    """
    opened = opened or {record.id for record in records if record.label == "harmful"}
    texts = [Request(one.prompt) for one in _varied([one for one in records if not one.image], opened)]
    pictured = [Request(one.prompt, one.picture()) for one in _varied([one for one in records if one.image], opened)]
    texts = texts or [Request(prompt) for prompt in _PROMPTS]
    pictured = pictured or [Request(prompt, _noise(seed)) for seed, prompt in enumerate(_PROMPTS)]
    found = {
        "1 row, text": texts[:1],
        "1 row, picture": pictured[:1],
        "4 rows padded, text": texts,
        "4 rows padded, pictures": pictured,
        "4 rows padded, mixed": [texts[0], pictured[1], texts[2], pictured[3]],
    }
    if several:
        first, second, third = (request.pictures[0] for request in pictured[:3])
        wide, tall = _stretched(second, 5, 2), _stretched(third, 1, 2)
        found["3 rows padded, several pictures of other sizes"] = [
            Request(pictured[0].prompt, (first, wide)),
            texts[1],
            Request(pictured[2].prompt, tall),
        ]
    return found


def _stretched(picture: Image.Image, across: int, down: int) -> Image.Image:
    return picture.resize((picture.width * across // 2, picture.height * down // 2))


def _varied(records: Sequence[Record], opened: Collection[str]) -> list[Record]:
    """Four records spread over the range of prompt lengths, opened and others in turn; none if there are fewer."""
    chosen: list[Record] = []
    for at in range(_BATCH):
        left = [record for record in records if record not in chosen]
        pool = [record for record in left if (record.id in opened) == (at % 2 == 0)] or left
        if not pool:
            return []
        pool.sort(key=lambda record: (len(record.prompt), record.id))
        chosen.append(pool[round(at * (len(pool) - 1) / (_BATCH - 1))])
    return chosen


def _noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def cached_steps() -> int:
    """How many cached decoding steps are compared where nobody says."""
    return CACHED_STEPS


def compare_logits(
    vlm: VLM, onnx_vlm: OnnxVLM, requests: Sequence[Request], steps: int, hooks: AppliedAdapters | None = None
) -> LogitsGap:
    """Logits at unpadded prompt positions and at ``steps`` cached steps; PyTorch chooses the tokens greedily.

    Adapters must be applied to ``vlm`` by the caller.

    Args:
        hooks: what the caller got for applying them, if they enforce refusals.
    """
    inputs = vlm.prepare(requests)
    state = onnx_vlm.prefill_requests(requests, all_logits=True)
    extras = state.extras
    real = inputs.attention_mask.astype(bool)
    only_last = state.logits.shape[1] < real.shape[1]  # some decoders give no others
    reference = torch_logits(vlm, requests, steps)
    logits = next(reference)
    forced = None
    if hooks is not None and (rows := hooks.forced_rows()).any():
        forced = Gap.between(logits[rows, -1], state.logits[rows, -1])
        real[rows, -1] = False
    if only_last:
        real = real[:, -1:]
    gap = Gap.between(logits[:, -real.shape[1] :][real], state.logits[real])
    for after in reference:
        state = onnx_vlm.step(state, logits[:, -1].argmax(-1))
        gap = gap.join(Gap.between(after, state.logits))
        logits = after
    return LogitsGap(gap, extras, forced)


@torch.inference_mode()
def torch_logits(vlm: VLM, requests: Sequence[Request], steps: int) -> Iterator[Float[np.ndarray, "batch seq vocab"]]:
    """PyTorch's logits of prompts, and then at each step of its greedy answers."""
    cache = DynamicCache()
    logits, inputs = vlm.prefill(requests, cache)
    yield logits.float().cpu().numpy()
    mask = torch.from_numpy(inputs.attention_mask).to(vlm.device)
    for _ in range(steps):
        tokens = logits[:, -1:].argmax(-1)
        mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
        logits = vlm.step(tokens, mask, cache)
        yield logits.float().cpu().numpy()


def compare_scores(hooks: AppliedAdapters, other: Mapping[str, np.ndarray]) -> dict[str, Gap]:
    """Gap of each [batch] output and of what is retrieved, as PyTorch gives them; one that the export lacks is NaN.

    A gate's score is what large terms leave when they cancel: its scale is the size of these terms. Retrieved ids are
    left out: near-ties may swap. Their scores stand for them, and ``check_retrieval`` for the rest.
    """
    gaps = {}
    for name, value in hooks.extras.items():
        if value.ndim == 1 or name in (RETRIEVED_SCORES, RETRIEVAL_QUERY):
            array = value.float().cpu().numpy()
            gap = Gap.between(array, other[name]) if name in other else Gap(float("nan"), 0.0, array.size)
            scale = hooks.magnitudes.get(name)
            gaps[name] = gap if scale is None else gap.at_least(float(scale.max()))
    return gaps


def parting_margin(vlm: VLM, onnx_vlm: OnnxVLM, request: Request, max_new_tokens: int) -> float | None:
    """How near the call was where the two answers to ``request`` part: the gap of the two tokens' logits, or the
    smaller distance of the risks from the threshold when one model refused and the other answered.

    None when the answers are the same on this second run, alone in their batch.
    """
    end = vlm.inputs.eos_token_ids[0]
    found = [model.generate([request], max_new_tokens)[0] for model in (vlm, onnx_vlm)]
    if found[0].refused != found[1].refused:
        return min(abs(answer.scores["risk"]) for answer in found)
    answers = [(*answer.token_ids, end) for answer in found]
    parted = [pair for pair in zip(*answers, strict=False) if pair[0] != pair[1]]
    if not parted:
        return None
    state = onnx_vlm.prefill_requests([request])
    for ours, theirs in zip(*answers, strict=False):
        if ours != theirs:
            break
        state = onnx_vlm.step(state, np.array([ours]))
    ours, theirs = parted[0]
    return float(abs(state.logits[0, -1, ours] - state.logits[0, -1, theirs]))
