"""The CARE sweep: layers, k, α, fusion and site depend on the model, so they are chosen on calibration records.

Two rounds: fusions, sites and both variants at few windows, ranks and strengths; then rank, α and the neighbouring
choices around the best of each variant and fusion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.manifest import describe_data
from ...adapters.artifact.sites import Site
from ...adapters.care.care import CARE
from ...adapters.care.statistics import CareStatistics, Role, collect, roles
from ..data.records import Record
from ..evaluation.evaluate import Progress, decide
from ..model.vlm import VLM
from .trials import Sweep, Trials

_FUSIONS = ("adaptive", "sequential", "parallel", "masked")  # injection with β = 1 is sequential with α = 1


def harmful_outcomes(vlm: VLM, records: Sequence[Record], max_new_tokens: int = 16) -> dict[str, str]:
    """What the model, as it runs, does with the harmful records of the fit split, by id."""
    harmful = [record for record in records if record.split == "fit" and record.label == "harmful"]
    if not harmful:
        return {}
    decisions = decide(vlm, harmful, max_new_tokens=max_new_tokens, batch_size=64)
    return {item.id: item.outcome for item in decisions}


def fit_care(vlm: VLM, records: Sequence[Record], care: CARE) -> Adapter:
    """Fit ``care``; the model is asked first which attacks succeed if the contrast is one of behaviour."""
    outcomes = harmful_outcomes(vlm, records) if care.contrast == "behaviour" else None
    return care.fit(vlm, records, outcomes=outcomes)


class CareSolver:
    """Adapters of many settings from few passes: statistics of all layers are kept per contrast, tokens and site."""

    def __init__(self, vlm: VLM, records: Sequence[Record]) -> None:
        self._vlm, self._records = vlm, list(records)
        self._outcomes: dict[str, str] | None = None
        self._roles: dict[str, dict[Role, list[Record]]] = {}
        self._statistics: dict[Any, CareStatistics] = {}

    def solve(self, care: CARE) -> Adapter:
        """The adapter that :func:`fit_care` would give."""
        by_role = self._by_role(care)
        kind = care.source(0).kind
        key = (care.contrast, care.tokens, kind)
        if key not in self._statistics:
            sites = [Site(kind, layer) for layer in range(self._vlm.base.n_layers)]
            self._statistics[key] = collect(self._vlm, by_role, sites, care.tokens)
        used = [record for group in by_role.values() for record in group]
        return care.solve(self._vlm, self._statistics[key], used)

    def _by_role(self, care: CARE) -> dict[Role, list[Record]]:
        if care.contrast not in self._roles:
            if care.contrast == "behaviour" and self._outcomes is None:
                self._outcomes = harmful_outcomes(self._vlm, self._records)
            self._roles[care.contrast] = roles(self._records, care.contrast, self._outcomes)
        return self._roles[care.contrast]


def windows(depth: int) -> dict[str, tuple[int, ...]]:
    """Runs of layers by name: the middle quarter and half, the later half, and all."""
    quarter, half = max(1, depth // 4), max(1, depth // 2)
    starts = {"quarter": ((depth - quarter) // 2, quarter), "half": ((depth - half) // 2, half)}
    starts |= {"later": (depth - half, half), "all": (0, depth)}
    return {name: tuple(range(start, start + length)) for name, (start, length) in starts.items()}


def usual(depth: int, width: int, given: Mapping[str, Any]) -> CARE:
    """What is fitted without a sweep: ``given`` options, and where they leave a choice what did best with both
    modalities on the reference VLM (``bench/care.py``), k as a share of the width.
    """
    options: dict[str, Any] = {"layers": windows(depth)["half"], "rank": max(1, width // 8)}
    if given.get("variant") != "official":
        options |= {"fusion": "masked", "site": "block", "contrast": "behaviour"}
    if given.get("scope", "all") != "all" or given.get("modalities", "both") != "both":
        options["fusion"] = "adaptive"  # masked has scopes of its own
    return CARE(**{**options, **given})


def coarse(depth: int, width: int, given: Mapping[str, Any]) -> list[CARE]:
    """First round, with k as a share of the width; ``given`` options are fixed.

    A contrast of behaviour, because removing what harmful records of any kind have in common removes the model's
    own sign of harm, by which it refuses.
    """
    runs, eighth = windows(depth), max(1, width // 8)
    settings = []
    for name, rank in product(("quarter", "half", "later"), (eighth, eighth * 3 // 2)):
        block = CARE(layers=runs[name], rank=max(1, rank), site="block", contrast="behaviour")
        settings += [replace(block, fusion=fusion) for fusion in _FUSIONS]
        settings.append(replace(block, modalities="textual"))
    for name, rank in product(("half", "all"), (eighth, 2 * eighth)):
        mlp = CARE(layers=runs[name], rank=rank, contrast="behaviour")
        settings += [replace(mlp, fusion=fusion) for fusion in ("adaptive", "sequential")]
        letter = CARE("official", layers=runs[name], rank=rank, selection="kernel")
        settings += [replace(letter, alpha=alpha) for alpha in (1.0, 4.0)]
    return _fixed(settings, given)


def refined(care: CARE, width: int, given: Mapping[str, Any]) -> list[CARE]:
    """Second round around one setting: rank, strength and what else its kind leaves open."""
    ranks = {max(1, min(round(care.rank * factor), width)) for factor in (0.75, 1.25, 1.5)}
    settings = [replace(care, rank=rank) for rank in sorted(ranks)]
    if care.variant == "official":
        settings += [replace(care, alpha=alpha) for alpha in (0.5, 2.0)]
        settings.append(replace(care, contrast="behaviour"))
        settings += [replace(care, fusion=fusion) for fusion in (*_FUSIONS[1:], "injection")]
        return _fixed(settings, given)
    settings += [replace(care, alpha=alpha) for alpha in (0.75, 1.25)]
    settings.append(replace(care, selection="kernel"))
    if care.fusion == "sequential":
        settings += [replace(care, fusion="injection", alpha=1.0, beta=beta) for beta in (0.5, 1.0, 1.5)]
    return _fixed(settings, given)


def _fixed(settings: Sequence[CARE], given: Mapping[str, Any]) -> list[CARE]:
    """``settings`` with the given options, each once, in order; what excludes each other is left out."""
    agreeing = (care for care in settings if given.get("variant", care.variant) == care.variant)
    if given.get("site", "mlp") != "mlp":
        agreeing = (care for care in agreeing if care.variant != "official")
    if given.get("scope", "all") != "all":
        agreeing = (care for care in agreeing if given.get("fusion", care.fusion) != "masked")
    return list(dict.fromkeys(replace(care, **given) for care in agreeing))


def run_sweep(
    vlm: VLM,
    records: Sequence[Record],
    given: Mapping[str, Any] | None = None,
    *,
    max_new_tokens: int = 16,
    progress: Progress | None = None,
    journal_path: Path | None = None,
) -> tuple[Sweep, CareSolver]:
    """Choose a setting on the calibration split.

    Args:
        given: options of :class:`CARE` that are not to be chosen.
        journal_path: where finished trials are kept until the sweep is complete, to resume from.

    Raises:
        UsageError: the calibration split lacks harmful or harmless records.
    """
    given = dict(given or {})
    solver = CareSolver(vlm, records)
    trials = Trials(
        vlm,
        records,
        solver.solve,
        identity=["care", vlm.fingerprint, describe_data(records).sha256],
        max_new_tokens=max_new_tokens,
        progress=progress,
        journal_path=journal_path,
    )
    width = vlm.base.d_model
    sweep = trials.two_rounds(
        coarse(vlm.base.n_layers, width, given),
        lambda care: refined(care, width, given),
        lambda care: (care.variant, care.fusion),
    )
    return sweep, solver


def fit_by_sweep(
    vlm: VLM,
    records: Sequence[Record],
    given: Mapping[str, Any],
    *,
    progress: Progress | None = None,
    journal_path: Path | None = None,
) -> Adapter:
    """The adapter of the setting that :func:`run_sweep` chooses, with the sweep's table attached."""
    sweep, solver = run_sweep(vlm, records, given, progress=progress, journal_path=journal_path)
    adapter = solver.solve(sweep.best.setting)
    return replace(adapter, attachments={**adapter.attachments, "sweep": sweep.table()})
