"""The whole export: plan → write → check → document; the folder appears, or nothing does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.deciding import require_deciding
from ...adapters.artifact.output import atomic_folder
from ...adapters.artifact.policy import own_work
from ...adapters.artifact.store import load_adapter
from ...adapters.errors import UsageError
from ...toolkit.data.records import load_records
from ...toolkit.data.sources import data_path
from ...toolkit.index.caption_index import CaptionIndex
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.model.options import LoadOptions
from ...toolkit.model.precision import is_large
from ..manifest import LAYOUT, ExportManifest, write_manifest
from ..parity.comparison import Comparison
from ..parity.reference import computing_wide
from ..parity.report import ParityReport
from ..runtime.sessions import sparing_memory
from .check import check_written
from .document import Measure, document
from .options import ExportOptions
from .plan import CALIBRATION, Plan, plan_export
from .source import Source
from .write import require_model, write_graphs

if TYPE_CHECKING:
    from ...toolkit.data.records import Record
    from ...toolkit.evaluation.evaluate import Decision
    from ...toolkit.model.vlm import VLM


@dataclass(frozen=True)
class ExportResult:
    """Results of an export.

    Attributes:
        folder: where it lies, with its card ``README.md`` and its ``report.html``.
        manifest: of the folder.
        parity: the report, which passed.
        decisions: answers to the records by PyTorch and by ONNX Runtime; empty without records.
        comparison: the evaluation of the unmodified model and of the export; None without records.
    """

    folder: Path
    manifest: ExportManifest
    parity: ParityReport
    decisions: tuple[Sequence[Decision], Sequence[Decision]] = ((), ())
    comparison: Comparison | None = None

    def describe(self) -> dict[str, Any]:
        """JSON-able: folder, card, report, parity, and the evaluation without its answers."""
        left_out = {"before": {"decisions"}, "after": {"decisions"}}
        return {
            "folder": str(self.folder),
            "card": str(self.folder / LAYOUT.card),
            "report": str(self.folder / LAYOUT.report),
            "parity": self.parity.model_dump(mode="json"),
            "comparison": self.comparison and self.comparison.model_dump(mode="json", exclude=left_out),
        }


def export_onnx(
    model: VLM | str | Path,
    adapters: Sequence[Adapter | str | Path],
    out: Path | str,
    options: ExportOptions | None = None,
    *,
    records: Sequence[Record] = (),
    answered: Sequence[Decision] = (),
    progress: Callable[[str], None] | None = None,
    measure: Measure | None = None,
    **given: Any,
) -> ExportResult:
    """Export a model with adapters in its graphs; ``out`` appears only if parity holds, with its card and report.

    Args:
        model: loaded: then its weights are exported as they are in memory; or its folder or name, such as
            ``reference:mild``: then they go from its files into the graphs, and it is in memory only for as long as
            PyTorch's results are recorded that the graphs are then compared with.
        adapters: in order, or their folders; none makes a base export, which others can put adapters into.
        options: see :class:`ExportOptions`; its fields can be given as keywords too, which win.
        records: records whose decisions are compared, and that the card's evaluation is of; instead of the option
            ``data``. With ``recalibrate``, those of split calibration set thresholds instead.
        answered: what the unmodified model answers to these records, if it was asked already.
        progress: called with the name of each step as it starts.
        measure: called with the unfinished folder, to add measurements that the card shows.

    Raises:
        UsageError: something cannot be done or an option could not act; before anything is made if that can be known.
        UnsupportedGraph: the base graphs are not understood.
        WrongBase: adapter or base graphs belong to another model.
        ParityFailed: the export does not do what the model does.
    """
    say = progress or (lambda _: None)
    chosen = ExportOptions.of(options, given)
    named = isinstance(model, (str, Path))
    chosen.require_use(tuple(LoadOptions.model_fields), named, "a model's name: this one is loaded already")
    plan = plan_export(_source(model, adapters, records, chosen, answered), Path(out), chosen, named=named)
    vlm = _opened(model, plan)
    require_model(plan, vlm)
    with (
        atomic_folder(plan.out, overwrite=chosen.overwrite) as work,
        computing_wide(vlm, chosen),
        sparing_memory(is_large(vlm.path)),
    ):
        written = write_graphs(plan, vlm, work, say)
        checked = check_written(plan, vlm, written, work, say)
        write_manifest(checked.manifest, work)
        with own_work():
            manifest, comparison = document(plan, checked, work, say, measure)
    return ExportResult(plan.out, manifest, checked.parity, checked.decisions, comparison)


def _source(
    model: VLM | str | Path,
    adapters: Sequence[Adapter | str | Path],
    records: Sequence[Record],
    options: ExportOptions,
    answered: Sequence[Decision],
) -> Source:
    """What is exported, without the model's weights unless it is loaded already."""
    if options.data is not None and records:
        raise UsageError("Both records and data were given.", "Give one of them.")
    loaded = tuple(item if isinstance(item, Adapter) else load_adapter(Path(item)) for item in adapters)
    for adapter in loaded:
        require_deciding(adapter)
    if isinstance(model, (str, Path)):
        checkpoint = _checkpoint(model)
        called, inputs, index = str(model), InputProcessor.from_pretrained(checkpoint), None
    else:
        checkpoint, called, inputs, index = model.path, str(model.path), model.inputs, model.index
    if options.external_index is not None:
        index = CaptionIndex.load(options.external_index)
    chosen = options.records()
    return Source(
        checkpoint=checkpoint,
        called=called,
        inputs=inputs,
        adapters=loaded,
        names=tuple("ADAPTER" if isinstance(item, Adapter) else str(item) for item in adapters),
        records=(*(records or chosen), *_calibration(options)),
        dataset=options.data or "records",
        answered=tuple(answered),
        skipped_rows=chosen.skipped,
        index=index,
    )


def _checkpoint(model: str | Path) -> Path:
    from ...toolkit.model.peft_folder import checkpoint_path

    return checkpoint_path(str(model))


def _calibration(options: ExportOptions) -> list[Record]:
    """Calibration records of the option ``data``, for ``recalibrate``."""
    if not options.recalibrate or options.data is None:
        return []
    return load_records(data_path(options.data), [CALIBRATION], **options.reading())


def _opened(model: VLM | str | Path, plan: Plan) -> VLM:
    from ...toolkit.model.vlm import VLM

    vlm = VLM.without_weights(plan.source.checkpoint, plan.options) if isinstance(model, (str, Path)) else model
    vlm.index = plan.source.index
    return vlm
