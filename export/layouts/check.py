"""Whether a folder does the same after it was laid out for another runtime as before: same requests, same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...adapters.errors import UsageError
from ...toolkit.model.requests import Inputs, Request
from ..parity.gap import Gap
from ..runtime.onnx_vlm import OnnxVLM
from .registry import get_layout

STEPS = 8


@dataclass(frozen=True)
class Arranged:
    """What a folder gave for one batch before it was laid out.

    Attributes:
        inputs: as it prepares them.
        logits: of all positions of the prompt, then of each step.
        extras: scores and what else comes with the prompt.
    """

    inputs: Inputs
    logits: Sequence[np.ndarray]
    extras: Mapping[str, np.ndarray]


def record_arranged(before: OnnxVLM, batch: Sequence[Request]) -> Arranged:
    """Run a batch, and :data:`STEPS` cached steps, on a folder that is going to be arranged."""
    state = before.prefill_requests(batch, all_logits=True)
    logits, extras = [state.logits], state.extras
    for _ in range(STEPS):
        state = before.step(state, logits[-1][:, -1].argmax(-1))
        logits.append(state.logits)
    return Arranged(before.inputs.prepare(batch), logits, extras)


def compare_arranged(before: Sequence[Arranged], after: OnnxVLM, batches: Sequence[Sequence[Request]]) -> Gap:
    """Largest difference of logits and scores, at prefill and at the cached steps.

    Args:
        before: what :func:`record_arranged` gave for each batch.
        after: the folder in its new layout, opened with the processor files that lie in it.

    Raises:
        UsageError: its processor files prepare other inputs.
    """
    gap = Gap(0.0, 0.0, 0)
    for ours, batch in zip(before, batches, strict=True):
        if not _same(ours.inputs, after.inputs.prepare(batch)):
            raise UsageError(
                f"The processor of layout {after.manifest.layout} prepares other inputs than the checkpoint's.",
                "Use --layout onnx, and report this checkpoint's processor_config.json.",
            )
        state = after.prefill_requests(batch, all_logits=True)
        for name, value in ours.extras.items():
            gap = gap.join(Gap.between(value, state.extras[name]))
        for at, logits in enumerate(ours.logits):
            if at:
                state = after.step(state, ours.logits[at - 1][:, -1].argmax(-1))
            gap = gap.join(Gap.between(logits, state.logits))
        if (further := get_layout(after.manifest.layout).compare(after, ours.inputs)) is not None:
            gap = gap.join(further)
    return gap


def _same(left: Inputs, right: Inputs) -> bool:
    names = left.pictures.keys() | right.pictures.keys()
    return np.array_equal(left.input_ids, right.input_ids) and all(
        name in left.pictures and name in right.pictures and np.array_equal(left.pictures[name], right.pictures[name])
        for name in names
    )
