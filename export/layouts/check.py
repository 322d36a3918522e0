"""Whether a folder does the same after it was laid out for another runtime as before: same requests, same tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ...adapters.errors import UsageError
from ...toolkit.model.requests import Inputs, Request
from ..parity.gap import Gap
from ..runtime.onnx_vlm import OnnxVLM
from .registry import get_layout

STEPS = 8


def compare_arranged(before: OnnxVLM, after: OnnxVLM, batches: Iterable[Sequence[Request]]) -> Gap:
    """Largest difference of logits and scores, at prefill and at :data:`STEPS` cached steps.

    Args:
        before: the folder as parity has seen it.
        after: the same in its new layout, opened with the processor files that lie in it.

    Raises:
        UsageError: its processor files prepare other inputs.
    """
    gap = Gap(0.0, 0.0, 0)
    for batch in batches:
        ours, theirs = before.inputs.prepare(batch), after.inputs.prepare(batch)
        if not _same(ours, theirs):
            raise UsageError(
                f"The processor of layout {after.manifest.layout} prepares other inputs than the checkpoint's.",
                "Use --layout onnx, and report this checkpoint's processor_config.json.",
            )
        left, right = (one.prefill_requests(batch, all_logits=True) for one in (before, after))
        gap = gap.join(Gap.between(left.logits, right.logits))
        for name, value in left.extras.items():
            gap = gap.join(Gap.between(value, right.extras[name]))
        for _ in range(STEPS):
            tokens = left.logits[:, -1].argmax(-1)
            left, right = before.step(left, tokens), after.step(right, tokens)
            gap = gap.join(Gap.between(left.logits, right.logits))
        if (further := get_layout(after.manifest.layout).compare(after, ours)) is not None:
            gap = gap.join(further)
    return gap


def _same(left: Inputs, right: Inputs) -> bool:
    names = left.pictures.keys() | right.pictures.keys()
    return np.array_equal(left.input_ids, right.input_ids) and all(
        name in left.pictures and name in right.pictures and np.array_equal(left.pictures[name], right.pictures[name])
        for name in names
    )
