"""Fitting a detector: the place and the probe from the fit split, the threshold from the calibration split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from pydantic import JsonValue

from ..artifact.adapter import Adapter
from ..artifact.intervention import Intervention
from ..artifact.manifest import AdapterInfo, BaseInfo, DetectorInfo, describe_data, library_versions
from ..artifact.sites import Site
from ..budget import Budget, groups_of
from ..ops.branch import Branch
from ..protocols import Blocks, BranchSource, Example, Place, Refusal, Workbench
from .budget import Promise, threshold_within
from .detector import Features, drawn
from .detector_report import Detector, Fitted, describe, row_of
from .probe import Metric
from .probe_settings import ProbeSettings, require_labels
from .search import Search, Searched
from .threads import one_thread

SIGN = "risk is the log-odds of harm: the more positive, the more harmful"


def fit(
    probe: ProbeSettings,
    model: BranchSource,
    records: Iterable[Example],
    refusal: Refusal,
    *,
    corrected_by: Sequence[Mapping[str, JsonValue]] = (),
    budget: Budget | None = None,
    phase: Callable[[str], None] | None = None,
) -> Adapter:
    """See :meth:`ProbeSettings.fit`; ``phase`` is told what is done, as it begins."""
    say = phase or (lambda _: None)
    records = [record for record in records if record.split in ("fit", "calibration")]
    require_labels(records)
    used, depth = used_records(probe, records), model.base.n_layers
    head = model.head()[0] if probe.space == "logits" else None
    detector = Detector(Metric.of(probe.space, head), probe.false_positive_rate, probe.seed)
    places, found = probe.places(depth), None
    if len(places) > 1:
        say("choosing layers")
        found = Search(detector, model, used, probe.compared, spared=budget is not None).run(places)
    place = found.place if found else places[0]
    features = found.features if found else None
    if features is None:
        say("reading states")
        features = Features.read(model, used, list(dict.fromkeys([place, *probe.compared([place])])))
    say("fitting and measuring the probe")
    return _solved(probe, model.base, detector, place, features, found, refusal, corrected_by, budget)


def require_records(probe: ProbeSettings, records: Sequence[Example], d_model: int) -> None:
    """Refuse records on which no detector can be fitted; no model is needed.

    Raises:
        UsageError: naming the split and the label that is missing.
    """
    require_labels(records)


def fit_on(probe: ProbeSettings, bench: Workbench) -> Adapter:
    """Fit with what a workbench has; layers and labels that are missing are refused before anything runs."""
    probe.places(bench.model.base.n_layers)
    require_labels(bench.records)
    refusal = bench.refusal()
    return fit(
        probe,
        bench.second_pass(),
        bench.records,
        refusal,
        corrected_by=bench.corrected_by,
        budget=bench.budget,
        phase=bench.phase,
    )


def used_records(probe: ProbeSettings, records: Sequence[Example]) -> list[Example]:
    """Calibration records, and the share of the fit records that was asked for."""
    ordered = sorted((record for record in records if record.split == "fit"), key=lambda record: record.id)
    if probe.fraction < 1:
        ordered = [ordered[row] for row in drawn(ordered, probe.fraction, probe.seed)]
    return [*ordered, *(record for record in records if record.split == "calibration")]


def _kept(
    budget: Budget, detector: Detector, fitted: Fitted, fit: Features, calibration: Features
) -> tuple[Detector, Fitted, Promise]:
    """The same probe with the threshold that keeps a budget; other detectors are compared at the share it refuses."""
    groups = groups_of([*fit.records, *calibration.records], budget.budget_by)
    ids = [record.id for record in calibration.records]
    risk = fitted.risk(calibration)
    threshold, promise = threshold_within(budget, groups, dict(zip(ids, risk.tolist(), strict=True)))
    share = float((risk[~calibration.harmful] > threshold).mean())
    return replace(detector, false_positive_rate=share), replace(fitted, threshold=threshold), promise


@one_thread()
def _solved(
    probe: ProbeSettings,
    base: BaseInfo,
    detector: Detector,
    chosen: Place,
    features: Features,
    found: Searched | None,
    refusal: Refusal,
    corrected_by: Sequence[Mapping[str, JsonValue]],
    budget: Budget | None,
) -> Adapter:
    """The adapter that reads at the chosen place, from all records."""
    fit, calibration = features.where(split="fit"), features.where(split="calibration")
    fitted, promise = detector.fit(chosen, fit, calibration), None
    if budget is not None:
        detector, fitted, promise = _kept(budget, detector, fitted, fit, calibration)
    table, part = (found.rows, found.part) if found else ([row_of(fitted, calibration)], None)
    info = AdapterInfo(
        method=probe.method,
        variant=probe.kind,
        sign_convention=SIGN,
        hyperparameters={
            **(budget.recorded_with(probe) if budget is not None else probe.values()),
            **probe.chosen(chosen),
            "regularisation": fitted.probe.strength,
            "corrected_by": [dict(item) for item in corrected_by],
        },
        seed=probe.seed,
        base=base,
        data=describe_data([*fit.records, *calibration.records]),
        versions=library_versions(),
    )
    tensors, risk = fitted.probe.tensors(), fitted.risk(calibration)
    # The threshold of a fit that catches nothing is accepted, as its figures show it; a later one is not.
    seen: list[JsonValue] = [float(risk.min()), float(np.nextafter(max(risk.max(), fitted.threshold), np.inf))]
    branch: Branch | None = None
    interventions: tuple[Intervention, ...] = ()
    if isinstance(chosen, tuple):
        branch = Branch("FusedProjection", Site.block(chosen[0]), Site.block(chosen[1]), tensors)
    elif isinstance(chosen, Blocks):
        *earlier, site = chosen.sites
        interventions = (Intervention("LinearProbe", site, "last", "prefill", tensors, reads=tuple(earlier)),)
    elif chosen.kind == "final_norm":
        last = Site.block(base.n_layers - 1)
        branch = Branch("FusedProjection", last, last, tensors)
    else:
        interventions = (Intervention("LinearProbe", chosen, "last", "prefill", tensors),)
    return Adapter(
        info,
        interventions,
        {
            "detector": {
                **describe(detector, fitted, table, part, fit, calibration),
                **({"budgeted": True} if promise is not None else {}),
            },
            "calibration": [{"what": "detector", **fitted.measured(calibration), "scores": seen}],
            **({"budget": promise.table()} if promise is not None else {}),
        },
        branch,
        DetectorInfo(threshold=fitted.threshold, refusal=refusal.text, refusal_token=refusal.token),
    )
