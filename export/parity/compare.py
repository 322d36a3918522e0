"""Running PyTorch and ONNX Runtime side by side on the same requests and the same tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ...toolkit.model.asking import request_of
from ...toolkit.model.requests import Generation, Request
from ..runtime.onnx_vlm import OnnxVLM
from .gap import Gap
from .recording import Recorded, Scores, record

if TYPE_CHECKING:
    from ...toolkit.data.records import Record
    from ...toolkit.model.hooks import AppliedAdapters
    from ...toolkit.model.vlm import VLM

CACHED_STEPS = 32
TEXT, PICTURE = "1 row, text", "1 row, picture"
TEXTS, PICTURES, MIXED = "4 rows padded, text", "4 rows padded, pictures", "4 rows padded, mixed"
SEVERAL = "3 rows padded, several pictures of other sizes"
_ORDER = (MIXED, TEXT, PICTURE, SEVERAL, PICTURES, TEXTS)  # in which a budget of rows is spent
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
    """Gap of the logits over prefill and all steps, and of the scores at prefill.

    Attributes:
        scores: by name, see :func:`compare_scores`; none without adapters.
        forced: of the last prompt position of rows whose refusal PyTorch enforces; None without such rows. Its
            logits are constants, far larger than real ones: they have no part in ``logits``.
        gates: margins at the prompt and at each step, PyTorch's and the graph's, of gates that act in the answer.
    """

    logits: Gap
    scores: dict[str, Gap]
    forced: Gap | None = None
    gates: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def parity_requests(
    records: Sequence[Record] = (), opened: Collection[str] = (), *, several: bool = False, rows: int | None = None
) -> dict[str, list[Request]]:
    """Batches of requests by what they are: one and four rows, with pictures, without, and mixed.

    Rows of a batch differ in length, so that they are padded, and half of them open a gate if any do.

    Args:
        opened: ids of records known to open a gate; by default harmful ones are taken to.
        several: add a batch with two pictures in a prompt, and pictures of other sizes.
        rows: at most this many in all, see :func:`few_rows`.
    """
    opened = opened or {record.id for record in records if record.label == "harmful"}
    texts = [request_of(one) for one in _varied([one for one in records if not one.pictured], opened)]
    pictured = [request_of(one) for one in _varied([one for one in records if one.pictured], opened)]
    texts = texts or [Request(prompt) for prompt in _PROMPTS]
    pictured = pictured or [Request(prompt, _noise(seed)) for seed, prompt in enumerate(_PROMPTS)]
    found = {
        TEXT: texts[:1],
        PICTURE: pictured[:1],
        TEXTS: texts,
        PICTURES: pictured,
        MIXED: [texts[0], pictured[1], texts[2], pictured[3]],
    }
    if several:
        first, second, third = (request.pictures[0] for request in pictured[:3])
        wide, tall = _stretched(second, 5, 2), _stretched(third, 1, 2)
        found[SEVERAL] = [
            Request(pictured[0].prompt, (first, wide)),
            texts[1],
            Request(pictured[2].prompt, tall),
        ]
    return found if rows is None else few_rows(found, rows)


def few_rows(batches: Mapping[str, list[Request]], rows: int) -> dict[str, list[Request]]:
    """At most ``rows`` requests of the batches, of as many kinds as that holds.

    One is a picture with its prompt. Of several, the padded batch of both kinds comes first, and a batch is cut to what
    is left.
    """
    chosen: dict[str, list[Request]] = {}
    for case in sorted(batches, key=_ORDER.index) if rows > 1 else (PICTURE,):
        batch = batches[case][: rows - sum(map(len, chosen.values()))]
        if batch:
            left = f"{len(batch)} rows padded" if len(batch) > 1 else "1 row"
            chosen[case.replace(f"{len(batches[case])} rows padded", left)] = batch
    return chosen


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
        pool.sort(key=lambda record: (record.length, record.id))
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
        hooks: what the caller got for applying them, if scores are compared or refusals enforced.
    """
    return compare_recorded(record(vlm, requests, steps, hooks), onnx_vlm, requests)


def compare_recorded(recorded: Recorded, onnx_vlm: OnnxVLM, requests: Sequence[Request]) -> LogitsGap:
    """The same, with what was recorded of PyTorch for these requests."""
    state = onnx_vlm.prefill_requests(requests, all_logits=True)
    scores = compare_scores(recorded.scores, state.extras)
    real, forced = recorded.real, None
    if (rows := recorded.forced) is not None:
        forced = Gap.between(recorded.prompt[rows, -1], state.logits[rows, -1])
        real = real.copy()
        real[rows, -1] = False
    real = real[:, -state.logits.shape[1] :]  # some decoders give the last position only
    gap = Gap(0.0, 0.0, 0)
    for one, other, mask in zip(recorded.prompt, state.logits, real, strict=True):
        gap = gap.join(Gap.between(one[-len(mask) :][mask], other[mask]))
    before, seen = recorded.prompt[:, -1], [state.scores]
    for after in recorded.steps:
        state = onnx_vlm.step(state, before.argmax(-1))
        gap = gap.join(Gap.between(after, state.logits[:, -1]))
        before = after
        seen.append(state.scores)
    missing = np.full(len(before), np.nan, np.float32)
    gates = {
        name: (margins, np.stack([one.get(name, missing) for one in seen])) for name, margins in recorded.gates.items()
    }
    return LogitsGap(gap, scores, forced, gates)


def compare_scores(scores: Scores, other: Mapping[str, np.ndarray]) -> dict[str, Gap]:
    """Gap of each score, as PyTorch gives them; one that the export lacks is NaN.

    A gate's score is what large terms leave when they cancel: its scale is the size of these terms. The scores of what
    is retrieved stand for its ids, and ``check_retrieval`` for the rest.
    """
    gaps = {}
    for name, array in scores.values.items():
        gap = Gap.between(array, other[name]) if name in other else Gap(float("nan"), 0.0, array.size)
        gaps[name] = gap if name not in scores.sizes else gap.at_least(scores.sizes[name])
    return gaps


def parting_margin(first: Generation, onnx_vlm: OnnxVLM, request: Request, max_new_tokens: int) -> float | None:
    """How near the call was where the two answers to ``request`` part: the gap of the two tokens' logits, or the
    smaller distance of the risks from the threshold when one model refused and the other answered.

    None when the answers are the same on this second run, alone in their batch.

    Args:
        first: PyTorch's answer, alone in its batch.
    """
    end = onnx_vlm.inputs.eos_token_ids[0]
    found = [first, onnx_vlm.generate([request], max_new_tokens)[0]]
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
