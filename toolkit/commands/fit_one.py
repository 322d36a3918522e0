"""One fit from the command line: options checked, then model and records loaded, fitted, saved and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.deciding import require_deciding
from ...adapters.artifact.held import begins_anew, beside
from ...adapters.artifact.names import located
from ...adapters.artifact.output import claimed
from ...adapters.artifact.sites import Site
from ...adapters.errors import UsageError
from ...adapters.method import Method, load
from ...adapters.settings import Settings, option_of, spelled_as_options
from ..data.journal import require_journal, require_no_journal
from ..data.sources import model_path
from ..diagnosis.channel_map import ChannelMap
from ..distributed.output import by_first, of_first
from ..distributed.world import is_first
from ..gated import calibrated, gated, require_openable
from ..index.caption_index import CaptionIndex
from ..model.options import AUTO, LoadOptions
from ..model.shape import require_fitted_on
from ..model.vlm import VLM
from ..sweep.run import fit_by_sweep, known_identity
from ..workbench import Workbench
from . import console, views
from .fit_call import FitCall, plan_fit
from .fit_plan import require_budget, require_options


def fit_and_save(
    call: FitCall, model: str, data: str, out: Path, *, overwrite: bool = False, as_json: bool = False
) -> None:
    """Fit, save and show.

    Raises:
        SafetykitError: whatever was wrong; nothing is written then, and what the options alone tell is said before
            a model is loaded.
    """
    with spelled_as_options():
        value = fit_folder(call, model, data, out, overwrite=overwrite)
    stack = [word for folder in (*call.inputs.get("with", ()), out) for word in ("--adapter", folder)]
    records = ["--data", data] if call.method.data == "records" else []
    graphs = []
    if (on := value["base"]["on"]) is not None:
        graphs = ["--precision", on["precision"], "--base-onnx", call.inputs["on"]]
    then = console.command_line("export", model, *stack, *graphs, *records, "-o", "export")
    console.note_pace(value["throughput"])
    console.emit(value, as_json=as_json, human=views.fit, then=then)


def fit_folder(
    call: FitCall,
    model: str,
    data: str,
    out: Path,
    *,
    overwrite: bool = False,
    loader: Callable[..., VLM] | None = None,
) -> dict[str, Any]:
    """Fit and save; gives what is shown.

    Args:
        loader: gives the model of a folder; see :class:`~safetykit.toolkit.model.kept.Kept`.

    Raises:
        SafetykitError: as :func:`fit_and_save`.
    """
    method, inputs = call.method, call.inputs
    channels, given = _with_map(call)
    require_options(method, given, inputs, sweep=call.sweep)
    if call.budget is not None:
        require_budget(method, given, call.budget, sweep=call.sweep, gated="gate_by" in inputs)
    folders = inputs.get("with", [])
    read = [value for name, value in inputs.items() if name != "with" and isinstance(value, str | Path)]
    target = located(out)
    work, journal = beside(target, "fitting"), beside(target, "sweep.jsonl")  # what an interrupted fit goes on from
    claim = claimed(out, overwrite=overwrite, inputs=[model, data, *folders, *read], spent=[work, journal])
    with by_first(claim):
        return _fit_there(call, channels, given, model, data, out, overwrite, work, journal, loader)


def _fit_there(
    call: FitCall,
    channels: ChannelMap | None,
    given: Mapping[str, Any],
    model: str,
    data: str,
    out: Path,
    overwrite: bool,
    work: Path,
    journal: Path,
    loader: Callable[..., VLM] | None,
) -> dict[str, Any]:
    """Fit and save where nobody else writes."""
    method, inputs = call.method, call.inputs
    planned = plan_fit(call, model, data, channels, given)
    records, captions, index, base = planned.records, planned.captions, planned.index, planned.base
    corrected_by, correctors = planned.corrected_by, planned.correctors
    if call.sweep:
        require_journal(journal, known_identity(method, records, corrected_by, call.budget, planned.gate))
    else:
        require_no_journal(journal, "the same command with --sweep")
    if "resume" not in method.takes:
        of_first(lambda: _require_none(work))
    for said in planned.warnings:
        console.warn(said)
    with console.work("loading") as doing:
        loading = _typed(call).loading()
        others = [*correctors, *([planned.gate.adapter] if planned.gate is not None else [])]
        known = require_fitted_on(others, model_path(model), model, choice=False) if others or channels else None
        if channels is not None and known is not None:
            channels.require_base(known, model)
        vlm = (loader or VLM.from_pretrained)(model_path(model), **loading)
        if known is not None:
            vlm.fingerprint = known
        text_model = None
        if "text_model" in inputs:
            text_model = VLM.from_pretrained(model_path(inputs["text_model"]), **loading)
        doing("sweeping" if call.sweep else "fitting")
        # A sweep applies its trials itself, so nothing is entered where there is nothing to apply.
        with base.held(vlm) if base else nullcontext(), vlm.applied(*correctors) if correctors else nullcontext():
            bench = Workbench(
                vlm,
                records,
                captions=captions,
                index=index,
                embedder=_embedder(vlm, index, inputs.get("encoder")),
                refusal=inputs.get("refusal"),
                text_model=text_model,
                corrected_by=corrected_by,
                budget=call.budget,
                gate=planned.gate,
                work=work,
                resume=inputs.get("resume", True),
                progress=doing.count,
                say=doing,
            )
            if call.sweep:
                adapter = fit_by_sweep(
                    method, bench, given, most=call.trials, progress=doing.count, journal_path=journal
                )
            else:
                with vlm.telling(doing.count):
                    adapter = fit_with(method, bench, given)
    require_deciding(adapter)
    if channels is not None:  # card and report show why these layers
        found = channels.info.model_dump(mode="json")
        adapter = replace(adapter, attachments={**adapter.attachments, "diagnosis": found})
    given_options = {name: value for name, value in console.options_in_force().items() if value not in (None, [])}
    adapter = replace(adapter, attachments={**adapter.attachments, "fit_options": given_options})
    adapter = replace(adapter, info=adapter.info.model_copy(update={"data": records.described(adapter.info.data)}))
    if is_first():
        adapter.save(out, overwrite=overwrite)
    return {
        "adapter": str(out),
        **adapter.info.model_dump(mode="json"),
        "sweep": adapter.attachments.get("sweep"),
        "budget": adapter.attachments.get("budget"),
        "accuracy": adapter.attachments.get("retrieval_accuracy"),
        "calibration": adapter.attachments.get("calibration"),
        "throughput": doing.throughput() if call.reading and not call.sweep else None,
    }


def _require_none(work: Path) -> None:
    """Refuse to end what an interrupted training would go on from.

    Raises:
        UsageError: there is some, and nothing says that it may go.
    """
    if work.is_dir() and any(work.iterdir()) and not begins_anew(work):
        raise UsageError(
            f"The training of an interrupted command is kept in {work}.",
            "Repeat that command to go on, pass --overwrite to begin anew, or choose another output.",
        )


def _typed(call: FitCall) -> LoadOptions:
    """How the model is loaded: in the type that the method needs, if none was asked for."""
    asked, needed = call.loading, call.method.dtype
    return asked.but(dtype=needed) if needed and asked.dtype == AUTO else asked


def fit_with(method: Method, bench: Workbench, given: Mapping[str, Any]) -> Adapter:
    """The adapter of the given settings on a workbench.

    Raises:
        UsageError: a setting is wrong or cannot act, or the method lacks what it needs.
    """
    settings = method.settle(given, bench.model.base.n_layers, bench.model.base.d_model)
    make: Callable[[Settings, Workbench], Adapter] = load(method.fit)
    if bench.gate is None:
        return make(settings, bench)
    gate = bench.gate
    require_openable(method, gate, [settings], bench.model.base.n_layers)
    if bench.budget is not None:
        bench.phase("setting the gate's threshold")
        gate = calibrated(gate, bench.model, bench.records, bench.budget)
    adapter = gated(gate, method, lambda chosen: make(chosen, bench), settings)
    if bench.budget is None:
        return adapter
    values = {**adapter.info.hyperparameters, **bench.budget.recorded_values}
    return replace(adapter, info=adapter.info.model_copy(update={"hyperparameters": values}))


def _with_map(call: FitCall) -> tuple[ChannelMap | None, dict[str, Any]]:
    """The channel map, if one is given, and the settings with those that it names."""
    given, inputs, method = dict(call.settings), call.inputs, call.method
    if "map" not in inputs:
        if "map_layers" in inputs:
            raise UsageError("--map-layers takes layers from a channel map.", "Name one with --map.")
        return None, given
    channels = ChannelMap.load(inputs["map"])
    named = load(method.map)(given, channels, inputs.get("map_layers"))
    if twice := sorted(named.keys() & given.keys()):
        raise UsageError(
            f"{option_of(method.settings, twice[0])} and --map both name the layers.", "Leave out one of them."
        )
    return channels, {**given, **named}


def _embedder(vlm: VLM, index: CaptionIndex | None, encoder: Path | None) -> Any:
    """What makes keys of captions that the index lacks: the given encoder, or the VLM if it made the index."""
    from ..retrieval.embedders import EncoderEmbedder, VLMEmbedder

    if index is None:
        return None
    if encoder is not None:
        return EncoderEmbedder(encoder)
    made_by = index.manifest.embedder
    return VLMEmbedder(vlm, Site.parse(str(made_by.site))) if made_by.sha256 == vlm.fingerprint else None
