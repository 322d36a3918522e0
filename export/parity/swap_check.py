"""Parity of a swap: the other adapter does what it does in PyTorch, and taking it out again leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...adapters.artifact.adapter import Adapter
from ..runtime.onnx_vlm import OnnxVLM
from .check import check_parity
from .compare import cached_steps, parity_requests
from .gap import Gap
from .reference import Against
from .report import ParityReport
from .swapped import adapters_of

if TYPE_CHECKING:
    from ...toolkit.data.records import Record
    from ...toolkit.model.vlm import VLM

_STEPS = 4


def check_swap(
    vlm: VLM,
    onnx_vlm: OnnxVLM,
    others: Sequence[Adapter | Path | str],
    *,
    own: Sequence[Adapter] = (),
    records: Sequence[Record] = (),
    steps: int | None = None,
    rows: int | None = None,
    allow_uncorrected_detector: bool = False,
    progress: Callable[[str], None] | None = None,
) -> ParityReport:
    """Swap ``others`` in, compare with PyTorch, and swap them out; the export then has its own adapters again.

    Args:
        others: whatever :meth:`OnnxVLM.swap` takes: adapters or their folders, an export, or ``.onnx_adapter`` files.
        steps: cached decoding steps that are compared; by default as many as in any comparison.
        rows: how many prompts are compared in all; None for the usual ones.
        own: the export's adapters, whose places the numbers of an export or of files take.

    Returns:
        Parity of ``others``, with a check that the export's own logits are the same bits before and after.

    Raises:
        UsageError, InvalidArtifact, WrongBase: ``others`` cannot be swapped in; see :meth:`OnnxVLM.swap`.
    """
    onnx_vlm.reset()
    with onnx_vlm.in_use():
        before = _logits(onnx_vlm)
    onnx_vlm.swap(*others, allow_uncorrected_detector=allow_uncorrected_detector)
    try:
        assert onnx_vlm.swapped is not None
        adapters = adapters_of(others, own, onnx_vlm.manifest, onnx_vlm.swapped)
        compared = Against(records=records, steps=steps or cached_steps(), rows=rows)
        report = check_parity(vlm, onnx_vlm, adapters, compared, progress=progress)
    finally:
        onnx_vlm.reset()
    with onnx_vlm.in_use():
        return report.with_swap(Gap.between(before, _logits(onnx_vlm)))


def _logits(onnx_vlm: OnnxVLM) -> np.ndarray:
    """Of a padded batch's last position and some steps."""
    state = onnx_vlm.prefill_requests(parity_requests()["4 rows padded, mixed"])
    found = [state.logits[:, -1:]]
    for _ in range(_STEPS):
        state = onnx_vlm.step(state, found[-1][:, -1].argmax(-1))
        found.append(state.logits)
    return np.stack(found)
