"""A method's sweep: its plan, tried on the calibration split of a workbench."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.deciding import ALLOWED, constant_decisions, require_deciding
from ...adapters.artifact.gate import Gate
from ...adapters.artifact.manifest import describe_data
from ...adapters.artifact.stack import describe_corrector
from ...adapters.budget import Budget
from ...adapters.errors import UsageError
from ...adapters.method import Method, load
from ...adapters.protocols import Workbench
from ...adapters.statistics.budget import Promise
from ...adapters.sweeping import Plan, require_some
from ..data.journal import Journal
from ..data.record import Record
from ..gated import gated, require_openable
from ..progress import Progress
from .budgeted import Part
from .trials import Sweep, Trials, spread

TOKENS = 16  # of an answer that is only judged


@dataclass(frozen=True)
class Swept:
    """What a sweep leaves.

    Attributes:
        sweep: trials, figures and the chosen one.
        solve: makes an adapter of a setting, from statistics that were collected once.
        promise: what the chosen one keeps on new groups, under a budget.
    """

    sweep: Sweep
    solve: Callable[[Any], Adapter]
    promise: Promise | None = None


def run_sweep(
    method: Method,
    bench: Workbench,
    given: Mapping[str, Any] | None = None,
    *,
    max_new_tokens: int = TOKENS,
    most: int | None = None,
    progress: Progress | None = None,
    journal_path: Path | None = None,
) -> Swept:
    """Choose a setting on the calibration split; under the workbench's budget, the strongest that keeps it.

    Args:
        given: settings that are not to be chosen.
        most: of the settings, at most so many are tried, evenly spread over each round; at most half of them in the
            first.
        journal_path: where finished trials are kept until the sweep is complete, to resume from.

    Raises:
        UsageError: the method has no sweep, the calibration split lacks harmful or harmless records, the given
            settings leave nothing to try, or none keeps the budget.
    """
    given = dict(given or {})
    part, promise, whole = None, None, bench.records
    if bench.budget is not None:
        part = Part.of(bench.budget, bench.records)
        bench = bench.of(part.others)
    plan, vlm = plan_of(method), bench.model
    depth, width = vlm.base.n_layers, vlm.base.d_model
    gate = bench.gate
    first = require_some(method.settings, plan.first(depth, width, given), given)
    if gate is not None:
        first = require_openable(method, gate, first, depth)
    journal = None
    if journal_path:
        identity = known_identity(method, whole, bench.corrected_by, bench.budget, gate, max_new_tokens)
        journal = Journal(journal_path, {**identity, **_identity(bench)})
    solve = plan.solver(bench)
    if gate is not None:
        solve = partial(gated, gate, method, solve)
    trials = Trials(
        vlm,
        bench.records,
        solve,
        max_new_tokens=max_new_tokens,
        progress=progress,
        journal=journal,
        allowed=part.allowance if part is not None else None,
    )
    deciding = _deciding(method, solve)
    if not (kept := deciding(first)):
        require_deciding(solve(first[0]))
    sweep = trials.two_rounds(
        kept if most is None else spread(kept, max(1, most // 2)),
        lambda setting: deciding(plan.around(setting, width, given)),  # at the same sites
        plan.kind,
        most=most,
    )
    if part is not None:
        sweep, promise = part.chosen(sweep, trials, journal, progress)
    if journal:
        journal.finish()
    return Swept(sweep, solve, promise)


def known_identity(
    method: Method,
    records: Sequence[Record],
    corrected_by: Sequence[Mapping[str, JsonValue]],
    budget: Budget | None = None,
    gate: Gate | None = None,
    max_new_tokens: int = TOKENS,
) -> dict[str, JsonValue]:
    """What the figures of a sweep depend on, as far as it is known before a model is loaded."""
    return {
        "method": method.name,
        "records": describe_data(records).sha256,
        "adapters (--with)": [dict(one) for one in corrected_by],
        "--max-new-tokens": max_new_tokens,
        **({"budget": budget.values()} if budget is not None else {}),
        **({"gate (--gate-by)": describe_corrector(gate.adapter)} if gate is not None else {}),
    }


def _identity(bench: Workbench) -> dict[str, JsonValue]:
    """The rest of it."""
    base = bench.model.base.model_dump(mode="json")
    return {
        "model": base["fingerprint"],
        "graphs (--on)": base["on"],
        "device or type": base["ran"],
    }


def _deciding(method: Method, solve: Callable[[Any], Adapter]) -> Callable[[Sequence[Any]], list[Any]]:
    """Leaves out settings whose gates are open, or closed, on all that was seen: such a fit would be refused."""

    def kept(settings: Sequence[Any]) -> list[Any]:
        if ALLOWED not in method.settings.model_fields:
            return list(settings)
        return [one for one in settings if getattr(one, ALLOWED) or not constant_decisions(solve(one))]

    return kept


def fit_by_sweep(
    method: Method,
    bench: Workbench,
    given: Mapping[str, Any] | None = None,
    *,
    most: int | None = None,
    progress: Progress | None = None,
    journal_path: Path | None = None,
) -> Adapter:
    """The adapter of the setting that :func:`run_sweep` chooses, with the sweep's table attached."""
    found = run_sweep(method, bench, given, most=most, progress=progress, journal_path=journal_path)
    adapter = found.solve(found.sweep.best.setting)
    info, more = adapter.info, dict[str, Any]()
    if bench.budget is not None and found.promise is not None:
        more["budget"] = found.promise.table()
        info = info.model_copy(update={"hyperparameters": {**info.hyperparameters, **bench.budget.recorded_values}})
    return replace(adapter, info=info, attachments={**adapter.attachments, "sweep": found.sweep.table(), **more})


def plan_of(method: Method) -> Plan:
    """What a sweep of the method tries.

    Raises:
        UsageError: nothing.
    """
    if method.sweep is None:
        raise UsageError(f"{method.title} has no sweep.", "Give its settings.")
    plan: Plan = load(method.sweep)
    return plan
