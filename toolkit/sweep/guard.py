"""The VLM-Guard sweep: the paper names neither m, nor α, nor the layers.

Two rounds: all layer windows and variants at default strength, then rank, α and threshold around the
best of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.manifest import describe_data
from ...adapters.vlm_guard.guard import GuardStatistics, Variant, VLMGuard, collect
from ..data.records import Record
from ..evaluation.evaluate import Progress
from ..model.vlm import VLM
from .trials import Sweep, Trials, layer_windows

_READINGS = (("svd", "paper"), ("mean", "calibrated"), ("mean", "whitened"))  # of direction and gate; first the paper's


def coarse(depth: int, given: Mapping[str, Any]) -> list[VLMGuard]:
    """First round: every variant, direction and gate at every layer window; ``given`` options are fixed.

    One layer alone is pushed harder than several, or the later ones undo it.
    """
    settings = []
    for layers, variant in product(layer_windows(depth), get_args(Variant)):
        if variant == "orthogonal":  # no gate and no α
            settings += [
                VLMGuard(variant, direction, layers=layers, scope="all", phase="both") for direction in ("svd", "mean")
            ]
        else:
            alpha = (4.0 if variant == "steer" else 2.0) if len(layers) == 1 else 1.0
            settings += [VLMGuard(variant, direction, gate, layers, alpha=alpha) for direction, gate in _READINGS]
    return _fixed(settings, given)


def refined(guard: VLMGuard, given: Mapping[str, Any]) -> list[VLMGuard]:
    """Second round: rank, α and threshold around one setting."""
    ranks = (1, 2)
    if guard.variant == "orthogonal":
        return _fixed([replace(guard, rank=rank) for rank in ranks], given)
    alphas = (0.5, 2.0, 4.0, 8.0) if guard.variant == "steer" else (1.0, 1.5, 2.0, 3.0)
    rates = (0.01, 0.03, 0.06) if guard.gate != "paper" else (guard.false_positive_rate,)
    settings = [
        replace(guard, rank=rank, alpha=alpha, false_positive_rate=rate)
        for rank, alpha, rate in product(ranks, alphas, rates)
    ]
    return _fixed(settings, given)


def _fixed(settings: Sequence[VLMGuard], given: Mapping[str, Any]) -> list[VLMGuard]:
    """``settings`` with the given options, each once, in order."""
    return list(dict.fromkeys(replace(guard, **given) for guard in settings if _agrees(guard, given)))


def _agrees(guard: VLMGuard, given: Mapping[str, Any]) -> bool:
    if given.get("hold") and guard.variant == "orthogonal":
        return False  # it has no gate
    if guard.variant == "supervised" and given.get("phase", "prefill") != "prefill":
        return False  # its second branch exists at prefill only
    return given.get("variant", guard.variant) == guard.variant


def run_sweep(
    vlm: VLM,
    records: Sequence[Record],
    given: Mapping[str, Any] | None = None,
    *,
    max_new_tokens: int = 16,
    progress: Progress | None = None,
    journal_path: Path | None = None,
) -> tuple[Sweep, GuardStatistics]:
    """Choose a setting on the calibration split.

    The statistics are collected once for all layers; a setting only solves and generates.

    Args:
        given: options of :class:`VLMGuard` that are not to be chosen.
        journal_path: where finished trials are kept until the sweep is complete, to resume from.

    Raises:
        UsageError: the calibration split lacks harmful or harmless records.
    """
    given = dict(given or {})
    statistics: list[GuardStatistics] = []

    def solve(guard: VLMGuard) -> Adapter:
        if not statistics:
            statistics.append(collect(vlm, records, range(vlm.base.n_layers)))
        return guard.solve(vlm, statistics[0], records)

    trials = Trials(
        vlm,
        records,
        solve,
        identity=[vlm.fingerprint, describe_data(records).sha256],
        max_new_tokens=max_new_tokens,
        progress=progress,
        journal_path=journal_path,
    )
    sweep = trials.two_rounds(
        coarse(vlm.base.n_layers, given), lambda guard: refined(guard, given), lambda guard: guard.variant
    )
    solve(sweep.best.setting)  # a sweep read back from its journal has not collected anything yet
    return sweep, statistics[0]


def fit_by_sweep(
    vlm: VLM,
    records: Sequence[Record],
    given: Mapping[str, Any],
    *,
    progress: Progress | None = None,
    journal_path: Path | None = None,
) -> Adapter:
    """The adapter of the setting that :func:`run_sweep` chooses, with the sweep's table attached."""
    sweep, statistics = run_sweep(vlm, records, given, progress=progress, journal_path=journal_path)
    adapter = sweep.best.setting.solve(vlm, statistics, records)
    return replace(adapter, attachments={**adapter.attachments, "sweep": sweep.table()})
