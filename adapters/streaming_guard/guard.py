"""The streaming guard (ours): harm is clearest just after the model has named the thing, so it is looked for there.

The nearest published work are probes that read a stream of tokens (Constitutional Classifiers++, TrajGuard).

Evidence, at the last position of the prompt and of every token of the answer, of several blocks S together::

    s_t = Σ_{l∈S} w_lᵀ h_{l,t} + b

Action at the last of these blocks, from the threshold τ on, r the difference of the mean states of harmful and
harmless text prompts there::

    ``ramp``  h_t += ½ α clamp(s_t − τ, 0, 4) r     without a state: each token answers for itself
    ``once``  h_t += α 1[t = min {u : s_u > τ}] r   at the first such token only, see :mod:`..ops.gating`

Fit: which token shows the harm of an answer is not known, so states are chosen as in multiple-instance learning. The
model answers every record as it is; a first probe learns from the prompts' last states. Then, in rounds, the state
of each harmful record that scores highest is its positive, and the ``hardest`` highest ones of each harmless record are
negatives; the probe (:mod:`..statistics.probe`) is fitted on these. The state that has read a whole answer and ends it
is no positive: harm that shows there comes too late. Nor is a state inside a refusal: the highest ones of these are
negatives, so that the gate closes once the model refuses and leaves it its own words. Of the rounds, the one with the
lowest class-balanced log-loss on calibration records is kept, each record counting by its maximum.

Threshold: of harmless calibration records the maximum over *all* states, that last one included, since a push there
would still change the answer. Under a budget (:mod:`..statistics.budget`) the last round is kept, so that calibration
records choose nothing but the threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from pydantic import JsonValue
from torch import Tensor

from ..artifact.adapter import Adapter
from ..artifact.deciding import gate_at, require_deciding
from ..artifact.intervention import Intervention
from ..artifact.manifest import AdapterInfo, describe_data, library_versions
from ..artifact.sites import Gating, Site
from ..budget import Budget
from ..errors import UsageError
from ..protocols import Example, TrajectorySource, Workbench
from ..statistics.probe_settings import require_labels
from ..statistics.threads import one_thread
from .evidence import Answers, Evidence, learn, measured
from .settings import StreamingGuard

SIGN = "the score is the log-odds of harm, and the push points from harmless text to harmful text"


def fit(
    guard: StreamingGuard,
    model: TrajectorySource,
    records: Iterable[Example],
    refuses: Callable[[str], bool],
    *,
    corrected_by: Sequence[Mapping[str, JsonValue]] = (),
    budget: Budget | None = None,
) -> Adapter:
    """See :meth:`StreamingGuard.fit`."""
    records = sorted((one for one in records if one.split in ("fit", "calibration")), key=lambda record: record.id)
    require_texts(records)
    sites = sites_of(guard, model.base.n_layers)
    answers = Answers.follow(model, records, sites, guard.tokens, refuses)
    adapter = solve(guard, model, answers, corrected_by, budget)
    require_deciding(adapter)
    return adapter


def fit_on(guard: StreamingGuard, bench: Workbench) -> Adapter:
    """Fit with what a workbench has."""
    require_texts(bench.records)
    bench.phase("following the model's answers")
    return fit(guard, bench.model, bench.records, bench.refuses, corrected_by=bench.corrected_by, budget=bench.budget)


def require_records(guard: StreamingGuard, records: Sequence[Example], d_model: int) -> None:
    """Refuse records that nothing can be learnt from; no model is needed.

    Raises:
        UsageError: naming the split and the label that is missing.
    """
    require_texts(records)


def require_texts(records: Sequence[Example]) -> None:
    """Refuse records without both labels in both splits, or without text to take the push from.

    Raises:
        UsageError: naming the split and the label that is missing.
    """
    require_labels(records)
    for label in ("harmful", "harmless"):
        if not any(one.split == "fit" and one.carrier == "text" and one.label == label for one in records):
            raise UsageError(
                f"The fit split holds no {label} text record.",
                "The push is the difference of harmful and harmless text; add some.",
            )


def sites_of(guard: StreamingGuard, depth: int) -> tuple[Site, ...]:
    """Where the probe reads in a decoder of ``depth`` blocks; the last one is pushed.

    Raises:
        UsageError: a layer does not exist.
    """
    chosen = guard.layers if guard.layers is not None else (depth // 4, depth // 2, 3 * depth // 4)
    sites = tuple(map(Site.block, sorted(set(chosen))))
    for site in sites:
        site.require_within(depth)
    return sites


def solve(
    guard: StreamingGuard,
    model: TrajectorySource,
    answers: Answers,
    corrected_by: Sequence[Mapping[str, JsonValue]] = (),
    budget: Budget | None = None,
) -> Adapter:
    """Turn answers that were followed into an adapter; no model is run."""
    found = learn(guard, answers, budget)
    *reads, site = answers.sites
    tensors = {
        **found.probe.tensors(),
        "threshold": torch.tensor(found.threshold, dtype=torch.float32),
        "direction": direction(answers).to(torch.float32),
        "alpha": torch.tensor(guard.alpha),
    }
    gate: Gating = "once" if guard.action == "once" else "per-token"
    op = {"ramp": "RampedPush", "once": "ProbedPush"}[guard.action]
    layers: list[JsonValue] = [one.layer for one in answers.sites]
    info = AdapterInfo(
        method="streaming-guard",
        variant=guard.action,
        sign_convention=SIGN,
        hyperparameters={
            **(budget.recorded_with(guard) if budget is not None else guard.values()),
            "layers": layers,
            "regularisation": found.probe.strength,
            "corrected_by": [dict(one) for one in corrected_by],
        },
        seed=guard.seed,
        base=model.base,
        data=describe_data(answers.records),
        versions=library_versions(),
    )
    intervention = Intervention(op, site, "last", "both", tensors, gate, tuple(reads))
    return Adapter(info, (intervention,), _attachments(guard, found, answers, site))


@one_thread(blas=False)
def direction(answers: Answers) -> Float[Tensor, " d_model"]:
    """r: mean state of harmful less that of harmless text prompts, at the site that is pushed."""
    width = answers.values.shape[1] // len(answers.sites)
    means = []
    for label in ("harmful", "harmless"):
        rows = [
            answers.first[at]
            for at, record in enumerate(answers.records)
            if record.split == "fit" and record.carrier == "text" and record.label == label
        ]
        means.append(answers.values[rows, -width:].to(torch.float64).mean(0))
    return means[0] - means[1]


def _attachments(guard: StreamingGuard, found: Evidence, answers: Answers, site: Site) -> dict[str, Any]:
    report = measured(found, answers)
    scores = found.highest(answers, split="calibration")
    seen = {
        "what": gate_at(site),
        "false_positive_rate": report["false_positive_rate"],
        "recall": report["recall"],
        "scores": [float(scores.min()), float(scores.max())],
    }
    kept = {"budget": found.promise.table()} if found.promise is not None else {}
    return {"streaming": {**report, "budget": found.rate}, "calibration": [seen], **kept}
