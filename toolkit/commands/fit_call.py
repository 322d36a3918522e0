"""What a fit was asked for, and what it reads: refused as far as that can be before a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.correctors import describe_correctors
from ...adapters.artifact.gate import Gate
from ...adapters.artifact.manifest import BaseInfo
from ...adapters.artifact.store import load_adapter
from ...adapters.budget import Budget
from ...adapters.errors import UsageError
from ...adapters.layers import require_text_model
from ...adapters.method import Method
from ..data.captions import captions_path, load_captions
from ..data.options import ReadOptions
from ..data.records import Records, load_records, require_pictures, subset
from ..data.sources import data_path, model_path
from ..diagnosis.channel_map import ChannelMap
from ..index.caption_index import CaptionIndex
from ..model.asking import require_answerable
from ..model.options import LoadOptions
from ..model.planned_sites import require_branches
from ..model.shape import Shape, decoder_shape, require_adaptable, require_same_shape
from .fit_plan import require_fit, require_kept, too_little

if TYPE_CHECKING:
    from ..model.vlm import VLM


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
        budget: what the adapter may cost on new groups.
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
    budget: Budget | None = None


@dataclass(frozen=True)
class PlannedFit:
    """What a fit reads, found and not refused.

    Attributes:
        correctors: that are applied while fitting; ``corrected_by``: how a manifest describes them.
        gate: the probe that opens what is fitted.
        base: the graphs whose rounded weights it stands on.
        warnings: what to say of the records.
    """

    records: Records
    captions: Sequence[Any]
    index: CaptionIndex | None
    base: GraphBase | None
    gate: Gate | None
    correctors: Sequence[Adapter]
    corrected_by: Sequence[Any]
    warnings: Sequence[str]


def plan_fit(
    call: FitCall, model: str, data: str, channels: ChannelMap | None = None, given: Mapping[str, Any] | None = None
) -> PlannedFit:
    """Read what a fit reads, and refuse whatever can be refused before a model is loaded.

    Args:
        channels: the map of the call, with the settings that it gives as ``given``.

    Raises:
        SafetykitError: whatever was wrong.
    """
    method, inputs = call.method, call.inputs
    given = call.settings if given is None else given
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
    base = call.open_base(inputs["on"]) if "on" in inputs else None
    shape = decoder_shape(model_path(model))
    gate = Gate.of(load_adapter(inputs["gate_by"]), str(inputs["gate_by"])) if "gate_by" in inputs else None
    _require_shapes(call, shape, [*correctors, *([gate.adapter] if gate is not None else [])], base, model)
    asks = "refusal" in method.takes and "refusal" not in inputs
    settings = require_fit(method, given, shape, records, sweep=call.sweep, asks_refusal=asks, gate=gate)
    if gate is not None and call.budget is not None and not call.sweep:
        gate.require_prompt()
    require_answerable(model, records)
    require_branches(model_path(model), settings)
    kept = require_kept(method, settings, call.budget, records, sweep=call.sweep) if call.budget is not None else ""
    said = (records.told(), *too_little(method, settings, records, call.budget), kept)
    return PlannedFit(records, captions, index, base, gate, correctors, corrected_by, [one for one in said if one])


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


def _require_encoder(index: CaptionIndex, captions: Sequence[Any]) -> None:
    """Refuse an encoder that has nothing to encode.

    Raises:
        UsageError: the index lacks no caption.
    """
    wanted = {item.caption for item in captions}
    if len(index.ids_of(wanted)) == len(wanted):
        raise UsageError("--encoder does nothing: the index holds every caption.", "Leave it out.")


def _limited(records: Records, limit: int | None) -> Records:
    """All records to fit on, and at most ``limit`` of the others."""
    if limit is None:
        return records
    others = [one for one in records if one.split != "fit"]
    return records.of([*(one for one in records if one.split == "fit"), *subset(others, limit)])
