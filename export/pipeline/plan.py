"""The plan of an export: everything that can be known before work starts is checked here, in seconds.

What is read are the adapters, the checkpoint's configuration, tokenizer and processor, the records and the names of the
base graphs. No weight of the model is needed, so that the plan is made before one is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...adapters.artifact.adapter import Adapter, the_detector
from ...adapters.artifact.hub import name_of
from ...adapters.artifact.output import require_free
from ...adapters.artifact.stack import require_fitted_stack, require_reading
from ...adapters.errors import UsageError
from ...toolkit.data.sources import PREFIX
from ...toolkit.families import family_of
from ...toolkit.model.retriever import retriever_of
from ..document.facts import MODEL_NAME_LENGTH, CardFacts
from ..layouts.arrange import require_layout
from ..layouts.registry import get_layout
from ..surgery.gates import GateState
from . import requirements
from .options import ExportOptions
from .source import Source

if TYPE_CHECKING:
    from ...toolkit.data.records import Record

CALIBRATION: Final = "calibration"


@dataclass(frozen=True)
class Plan:
    """An export that nothing forbids that is known before it.

    Attributes:
        out: the folder that is to appear.
        gate_state: where held gates keep their decision; the layout may leave no choice.
        records: those that decisions are compared on.
        calibration: those that thresholds are set on again; none without ``recalibrate``.
        fitted_together: the detector was fitted under the correctors beside it.
        facts: what the card says that nobody can measure.
    """

    source: Source
    options: ExportOptions
    out: Path
    gate_state: GateState
    records: tuple[Record, ...]
    calibration: tuple[Record, ...]
    fitted_together: bool
    facts: CardFacts

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The adapters as they were given."""
        return self.source.adapters

    @property
    def bare(self) -> bool:
        """Whether this is a base export."""
        return not self.source.adapters


def plan_export(source: Source, out: Path, options: ExportOptions, *, named: bool = False) -> Plan:
    """Check an export before anything of it is made.

    Args:
        named: the model is to be loaded from its folder.

    Raises:
        UsageError: something cannot be done, or an option could not act: it is named, with what to do.
        UnsupportedGraph, InvalidArtifact, WrongBase: base graphs or adapters do not fit.
    """
    adapters, config = source.adapters, source.config
    read = [source.checkpoint, *source.names, options.data, options.base_onnx, options.external_index]
    require_free(out, overwrite=options.overwrite, inputs=read)
    if adapters and all(adapter.empty for adapter in adapters):
        raise UsageError("There is nothing to bake: the adapters are empty.", "Fit one, or leave out --adapter.")
    records, calibration = _parted(source.records, options)
    if source.answered and [one.id for one in source.answered] != [one.id for one in records]:
        raise UsageError("The answers that are known are to other records.", "Leave them out, or ask these records.")
    requirements.require_use(options, adapters, records, calibration)
    if the_detector(adapters) is None and options.enforce:
        raise UsageError("There is no detector whose refusal could be enforced.", "Give one, or leave out --enforce.")
    requirements.require_one_base(source, options)
    require_reading(adapters)
    together = require_fitted_stack(
        adapters,
        source.names or None,
        model=source.called,
        data=options.data or "DATA",
        allow=options.allow_uncorrected_detector,
    )
    requirements.require_mode(adapters, options)
    require_layout(options.layout, config.model_type, adapters, enforce=options.enforce)
    requirements.require_base_graphs(source, options)
    requirements.require_weights(source, options)
    if named:
        requirements.require_computable(source.checkpoint, options)
    if options.base_onnx is None:
        family_of(config)  # an architecture that is not exported is refused by name
    retriever_of(adapters, source.index)
    requirements.require_providers(options.providers)
    requirements.require_pictures([*records, *calibration])
    requirements.require_prompts(source.inputs, records, str(source.checkpoint), own=options.base_onnx is None)
    return Plan(
        source=source,
        options=options,
        out=out,
        gate_state="cache" if get_layout(options.layout).own_loop else options.gate_state,
        records=records,
        calibration=calibration,
        fitted_together=together,
        facts=CardFacts(
            base_model=options.base_model or _model_name(source),
            base_license=options.base_license or ("apache-2.0" if _is_reference(source) else None),
        ),
    )


def _parted(records: Sequence[Record], options: ExportOptions) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Records whose decisions are compared, and records that thresholds are set on."""
    if not options.recalibrate:
        return tuple(records), ()
    calibration = tuple(record for record in records if record.split == CALIBRATION)
    return tuple(record for record in records if record.split != CALIBRATION), calibration


def _is_reference(source: Source) -> bool:
    return source.called.startswith(f"{PREFIX}:")


def _model_name(source: Source) -> str:
    """A name that the card can show: the id, or the last part of the path without what an id cannot hold."""
    name = f"safetykit-{source.called.replace(':', '-')}" if _is_reference(source) else name_of(source.checkpoint)
    return re.sub(r"[^\w./-]+", "-", name).strip("-._/")[:MODEL_NAME_LENGTH] or "model"
