"""From a checkpoint alone to figures before and after: what `safetykit quickstart` runs, step by step.

Each step leaves a file or a folder that appears whole; the same command goes on after the last of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...adapters.artifact.held import held
from ...adapters.artifact.names import located
from ...adapters.artifact.store import load_adapter
from ...adapters.errors import InvalidArtifact
from ...adapters.method import Method
from ...toolkit.commands import console
from ...toolkit.commands.fit_call import FitCall
from ...toolkit.commands.fit_one import fit_folder
from ...toolkit.commands.progress import Work
from ...toolkit.data.options import ReadOptions
from ...toolkit.data.record import Split
from ...toolkit.data.starter.made import Starter, write_starter
from ...toolkit.evaluation.evaluate import Evaluation
from ...toolkit.evaluation.preference import rank
from ...toolkit.model.options import LoadOptions
from ...toolkit.model.peft_folder import checkpoint_path
from ...toolkit.model.vlm import VLM
from ...toolkit.sweep.trials import ALLOWED_COST
from ..pipeline.options import ExportOptions
from .advice import advice, judged_by, not_aligned
from .choices import EvalOptions
from .evaluation import evaluate_model
from .loop import EXPORT, export_loop
from .quickstart_options import QuickstartOptions
from .quickstart_plan import RECORDS, Plan, plan_quickstart, require_records, usual

_REFUSAL = "I'm sorry, but I can't help with that."  # of detectors, where the model has no refusal of its own


def run_quickstart(model: str, out: Path, options: QuickstartOptions) -> dict[str, Any]:
    """Make records, ask the model, fit, export and ask the export.

    Args:
        out: a new folder, or that of the same command, which goes on.

    Returns:
        JSON-able: everything that is shown.

    Raises:
        UsageError: it cannot be done; before any work, if that can be known.
        ParityFailed: the export does not do what the model does; there is none then.
    """
    began = time.monotonic()
    with held(located(out), spent=[out]):
        run = _Run(plan_quickstart(model, out, options))
        found = run.all()
    return {**found, "seconds": round(time.monotonic() - began, 1)}


class _Run:
    """The steps, in their order."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self._step = plan, 0
        several = len(plan.methods) > 1
        self._steps = plan.starter + 1 + len(plan.methods) + several + 1

    def all(self) -> dict[str, Any]:
        plan = self.plan
        if plan.starter:
            self._records()
        before = self._evaluated("asking the model as it is", "before", "test")
        found: dict[str, Any] = {
            "model": console.as_typed(plan.model),
            "organism": plan.organism,
            "folder": str(plan.folder),
            "data": plan.data,
            "starter": plan.starter,
            "judged_by": judged_by(plan.data),
            "asked": dict(Counter(item.label for item in before.decisions)),
            "undefended": before.model_dump(mode="json", exclude={"decisions"}),
            "obstacle": plan.obstacle,
            "stopped": not_aligned(before, plan.methods),
            "method": None,
            "adapter": None,
            "fitted": [],
            "comparison": None,
            "parity": None,
            "latency": None,
            "export": None,
        }
        if not found["stopped"]:
            found |= self._defended(before)
        return {**found, "better": advice(plan, found, before)}

    def _defended(self, before: Evaluation) -> dict[str, Any]:
        """Fit, choose, export and ask again."""
        plan = self.plan
        for method in plan.methods:
            self._fit(method, before)
        fitted = [self._fitted(method) for method in plan.methods]
        best = self._chosen(fitted)
        chosen = next(one for one in plan.methods if one.name == best["method"])
        after = self._in_pytorch(chosen, before) if plan.obstacle else self._exported(chosen, before)
        return {"method": chosen.name, "adapter": str(plan.adapter(chosen)), "fitted": fitted, **after}

    def _records(self) -> None:
        target = self.plan.folder / RECORDS
        with self._doing("making records", target) as doing:
            if doing is not None:
                asked = Starter(records=self.plan.options.records or Starter.records)
                write_starter(target, asked)
        require_records(self.plan)

    def _evaluated(
        self, what: str, name: str, split: Split, adapter: Path | None = None, *, begins: bool = True
    ) -> Evaluation:
        """Ask the model, with an adapter or without; the evaluation is kept in the folder.

        Args:
            begins: a step begins with it.
        """
        plan, options = self.plan, self.plan.options
        target = plan.folder / f"{name}.json"
        with self._doing(what, target, begins=begins) as doing:
            if doing is not None:
                asked = EvalOptions(
                    data=plan.data,
                    split=split,
                    limit=options.limit,
                    max_new_tokens=options.max_new_tokens,
                    **options.loading(),
                )
                adapters = [] if adapter is None else [adapter]
                evaluate_model(plan.model, adapters, asked, out=target, progress=doing.count, say=doing)
        try:
            return Evaluation.model_validate_json(target.read_bytes())
        except ValueError:
            raise InvalidArtifact(f"{target} was edited.", "Remove it: the same command makes it again.") from None

    def _fit(self, method: Method, before: Evaluation) -> None:
        plan, options = self.plan, self.plan.options
        target = plan.adapter(method)
        if self._there(f"fitting {method.title}", target):
            return
        silent = not sum(item.outcome == "refused" for item in before.decisions if item.label == "harmful")
        call = FitCall(
            method,
            usual(method),
            {"refusal": _REFUSAL} if silent and "refusal" in method.takes else {},
            _no_base,
            LoadOptions(**options.loading()),
            ReadOptions(),
            sweep=method.sweep is not None,
            trials=options.trials,
            limit=options.limit,
        )
        fit_folder(call, plan.model, plan.data, target)

    def _fitted(self, method: Method) -> dict[str, Any]:
        """What a fit found, as its adapter keeps it."""
        adapter = load_adapter(self.plan.adapter(method))
        sweep: Any = adapter.attachments.get("sweep")
        found = {"method": method.name, "title": method.title, "variant": adapter.info.variant}
        if not isinstance(sweep, dict):
            return {**found, "sweep": None}
        kept = ("undefended", "best", "within_cost", "allowed_cost")
        return {**found, "sweep": {**{name: sweep[name] for name in kept}, "trials": len(sweep["trials"])}}

    def _chosen(self, fitted: list[dict[str, Any]]) -> dict[str, Any]:
        """The method that does best on calibration records, asked of each in the same way."""
        if len(fitted) == 1:
            return fitted[0]
        what = "asking calibration records"
        bare = _figures(self._evaluated(what, "calibration", "calibration"))
        for one, method in zip(fitted, self.plan.methods, strict=True):
            adapter = self.plan.adapter(method)
            name = f"calibration-{method.name}"
            found = _figures(self._evaluated(what, name, "calibration", adapter, begins=False))
            cost = max(found["over_refusal"] - bare["over_refusal"], bare["exact"] - found["exact"])
            one["calibration"] = {**found, "cost": cost}

        def key(one: dict[str, Any]) -> tuple[int, float, float]:
            found = one["calibration"]
            return rank(found["attack_success"], found["cost"], bare["attack_success"], ALLOWED_COST)

        return min(fitted, key=key)

    def _exported(self, method: Method, before: Evaluation) -> dict[str, Any]:
        plan, options = self.plan, self.plan.options
        chosen = ExportOptions(
            data=plan.data, limit=options.limit, max_new_tokens=options.max_new_tokens, **options.loading()
        )
        with self._doing("exporting to ONNX, and asking the export", plan.folder / EXPORT) as doing:
            found = export_loop(
                plan.model,
                plan.adapter(method),
                plan.folder,
                chosen,
                vlm=lambda: VLM.without_weights(checkpoint_path(plan.model), chosen),
                answered=before.decisions,
                progress=doing or (lambda step: None),
            )
        found["export"] = found.pop("folder")
        return found

    def _in_pytorch(self, method: Method, before: Evaluation) -> dict[str, Any]:
        """Figures of the checkpoint with its adapter, of one that cannot be exported."""
        after = self._evaluated("asking the model with its adapter", "after", "test", self.plan.adapter(method))
        sides = {"before": before, "after": after}
        return {"comparison": {name: one.model_dump(mode="json", exclude={"decisions"}) for name, one in sides.items()}}

    def _there(self, what: str, target: Path, *, begins: bool = True) -> bool:
        """Say which step begins, and whether it was done before."""
        done = target.exists()
        if begins:
            self._step += 1
            console.note(f"{self._step}/{self._steps} {what}{': done before' if done else ''}")
        return done

    @contextmanager
    def _doing(self, what: str, target: Path, *, begins: bool = True) -> Iterator[Work | None]:
        """Show a step's work; None where it was done before."""
        if self._there(what, target, begins=begins):
            yield None
            return
        with console.work(what) as doing:
            yield doing


def _figures(found: Evaluation) -> dict[str, float]:
    names = ("attack_success", "over_refusal", "exact")
    return {name: found.rate("all", name).rate for name in names}  # type: ignore[arg-type]


def _no_base(folder: Path) -> Any:
    raise AssertionError("a quickstart fits on no graphs")
