"""One fit from the command line: options checked, then model and records loaded, fitted, saved and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.correctors import describe_correctors
from ...adapters.artifact.deciding import require_deciding
from ...adapters.artifact.held import begins_anew, beside
from ...adapters.artifact.manifest import BaseInfo
from ...adapters.artifact.names import located
from ...adapters.artifact.output import claimed
from ...adapters.artifact.sites import Site
from ...adapters.artifact.store import load_adapter
from ...adapters.errors import UsageError
from ...adapters.layers import require_text_model
from ...adapters.method import Method, load
from ...adapters.settings import Settings, option_of, spelled_as_options
from ..data.captions import captions_path, load_captions
from ..data.journal import require_journal, require_no_journal
from ..data.options import ReadOptions
from ..data.records import Records, load_records, require_pictures, subset
from ..data.sources import data_path, model_path
from ..diagnosis.channel_map import ChannelMap
from ..distributed.output import by_first, of_first
from ..distributed.world import is_first
from ..index.caption_index import CaptionIndex
from ..model.asking import require_answerable
from ..model.options import AUTO, LoadOptions
from ..model.planned_sites import require_branches
from ..model.shape import Shape, decoder_shape, require_adaptable, require_fitted_on, require_same_shape
from ..model.vlm import VLM
from ..sweep.run import fit_by_sweep, known_identity
from ..workbench import Workbench
from . import console, views
from .fit_plan import require_fit, require_options, too_little


class GraphBase(Protocol):
    """A base export, whose weights a model can run with.

    Attributes:
        base: the model that it was exported from.
    """

    @property
    def base(self) -> BaseInfo: ...

    def held(self, vlm: VLM) -> AbstractContextManager[None]:
        """Run ``vlm`` with them until the block ends."""
        ...


@dataclass(frozen=True)
class FitCall:
    """What was asked for.

    Attributes:
        settings: given settings, by name.
        inputs: what else was given, by the names of :data:`safetykit.adapters.method.Input`.
        open_base: reads the base export that the fit is to stand on.
        loading: how the model is loaded; ``reading``: how records are, of a method that is fitted on them.
        sweep: choose what is not given on calibration records; ``trials``: of at most so many settings.
        limit: at most so many calibration records, spread over carriers and labels.
    """

    method: Method
    settings: Mapping[str, Any]
    inputs: Mapping[str, Any]
    open_base: Callable[[Path], GraphBase]
    loading: LoadOptions
    reading: ReadOptions | None = None
    sweep: bool = False
    trials: int | None = None
    limit: int | None = None


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


def fit_folder(call: FitCall, model: str, data: str, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Fit and save; gives what is shown.

    Raises:
        SafetykitError: as :func:`fit_and_save`.
    """
    method, inputs = call.method, call.inputs
    channels, given = _with_map(call)
    require_options(method, given, inputs, sweep=call.sweep)
    folders = inputs.get("with", [])
    read = [value for name, value in inputs.items() if name != "with" and isinstance(value, str | Path)]
    target = located(out)
    work, journal = beside(target, "fitting"), beside(target, "sweep.jsonl")  # what an interrupted fit goes on from
    claim = claimed(out, overwrite=overwrite, inputs=[model, data, *folders, *read], spent=[work, journal])
    with by_first(claim):
        return _fit_there(call, channels, given, model, data, out, overwrite, work, journal)


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
) -> dict[str, Any]:
    """Fit and save where nobody else writes."""
    method, inputs = call.method, call.inputs
    folders = inputs.get("with", [])
    records, captions = Records(), []
    if call.reading is None:
        captions = load_captions(captions_path(data))
    else:
        records = load_records(data_path(data), ("fit", "calibration"), **call.reading.reading())
        records = _limited(records, call.limit)
        require_pictures(records)
    corrected_by, correctors = describe_correctors(folders), [load_adapter(folder) for folder in folders]
    index = CaptionIndex.load(inputs["index"]) if "index" in inputs else None
    if index is not None and "encoder" in inputs:
        _require_encoder(index, captions)
    if call.sweep:
        require_journal(journal, known_identity(method, records, corrected_by))
    else:
        require_no_journal(journal, "the same command with --sweep")
    if "resume" not in method.takes:
        of_first(lambda: _require_none(work))
    base = call.open_base(inputs["on"]) if "on" in inputs else None
    shape = decoder_shape(model_path(model))
    _require_shapes(call, shape, correctors, base, model)
    asks = "refusal" in method.takes and "refusal" not in inputs
    settings = require_fit(method, given, shape, records, sweep=call.sweep, asks_refusal=asks)
    require_answerable(model, records)
    require_branches(model_path(model), settings)
    for said in (records.told(), *too_little(method, settings, records)):
        if said:
            console.warn(said)
    with console.work("loading") as doing:
        loading = _typed(call).loading()
        known = require_fitted_on(correctors, model_path(model), model) if correctors or channels else None
        if channels is not None and known is not None:
            channels.require_base(known, model)
        vlm = VLM.from_pretrained(model_path(model), **loading)
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
        "accuracy": adapter.attachments.get("retrieval_accuracy"),
        "calibration": adapter.attachments.get("calibration"),
        "throughput": doing.throughput() if call.reading and not call.sweep else None,
    }


def _limited(records: Records, limit: int | None) -> Records:
    """All records to fit on, and at most ``limit`` of the others."""
    if limit is None:
        return records
    others = [one for one in records if one.split != "fit"]
    return records.of([*(one for one in records if one.split == "fit"), *subset(others, limit)])


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


def _require_shapes(
    call: FitCall, shape: Shape | None, correctors: Sequence[Adapter], base: GraphBase | None, model: str
) -> None:
    """Refuse what was made for another model or from one, as far as layers and width show it.

    Raises:
        WrongBase: an adapter of ``--with``, or the graphs of ``--on``.
        UsageError: the text model.
    """
    require_adaptable(correctors, shape, model, allow_wrong_base=None)
    if base is not None:
        what = f"The graphs in {call.inputs['on']} were exported from"
        require_same_shape(base.base, shape, what, model, "Export the base graphs of this model.")
    if "text_model" in call.inputs:
        text = decoder_shape(model_path(call.inputs["text_model"]))
        if text is not None and shape is not None:
            require_text_model(text[:2], shape[:2])


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
    return make(settings, bench)


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


def _require_encoder(index: CaptionIndex, captions: Sequence[Any]) -> None:
    """Refuse an encoder that has nothing to encode.

    Raises:
        UsageError: the index lacks no caption.
    """
    wanted = {item.caption for item in captions}
    if len(index.ids_of(wanted)) == len(wanted):
        raise UsageError("--encoder does nothing: the index holds every caption.", "Leave it out.")


def _embedder(vlm: VLM, index: CaptionIndex | None, encoder: Path | None) -> Any:
    """What makes keys of captions that the index lacks: the given encoder, or the VLM if it made the index."""
    from ..retrieval.embedders import EncoderEmbedder, VLMEmbedder

    if index is None:
        return None
    if encoder is not None:
        return EncoderEmbedder(encoder)
    made_by = index.manifest.embedder
    return VLMEmbedder(vlm, Site.parse(str(made_by.site))) if made_by.sha256 == vlm.fingerprint else None
