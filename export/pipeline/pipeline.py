"""The whole export: base graphs → bake → manifest → parity → the folder appears, or nothing does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...adapters.artifact.adapter import Adapter, the_detector
from ...adapters.artifact.files import atomic_folder, write_atomic
from ...adapters.artifact.store import require_base
from ...adapters.errors import UsageError, WrongBase
from ...toolkit.model.folding import fold_all
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.retrieval.prefix import retriever_of
from ..base.own import write_base
from ..base.quantise import quantise_decoder
from ..foreign.importing import import_graphs
from ..layouts.arrange import arrange, require_layout
from ..layouts.carry import OWN_LOOP
from ..layouts.check import compare_arranged
from ..manifest import GRAPHS, LAYOUT, ExportManifest, LayoutName, Mode, Precision, read_manifest, write_manifest
from ..parity.check import check_parity
from ..parity.compare import parity_requests
from ..parity.exposed import require_movement
from ..parity.recalibrate import recalibrated, require_thresholds
from ..parity.report import ParityReport
from ..parity.retrieval_checks import require_response
from ..runtime.onnx_vlm import OnnxVLM
from ..runtime.sessions import CPU
from ..surgery.adapt import adapt, copy_base, place
from ..surgery.gates import GateState
from ..surgery.updates import plan_updates

if TYPE_CHECKING:
    from ...toolkit.data.records import Record
    from ...toolkit.evaluation.evaluate import Decision
    from ...toolkit.model.vlm import VLM

Finish = Callable[[Path, "ExportResult"], None]


@dataclass(frozen=True)
class ExportResult:
    """What an export made.

    Attributes:
        folder: where it lies.
        manifest: of the folder.
        parity: the report, which passed.
        decisions: answers to the records by PyTorch and by ONNX Runtime; empty without records.
    """

    folder: Path
    manifest: ExportManifest
    parity: ParityReport
    decisions: tuple[Sequence[Decision], Sequence[Decision]] = ((), ())


def export_onnx(
    vlm: VLM,
    adapters: Sequence[Adapter],
    out: Path | str,
    *,
    precision: Precision = "fp32",
    mode: Mode = "bake",
    base_onnx: Path | str | None = None,
    records: Sequence[Record] = (),
    max_new_tokens: int = 32,
    providers: Sequence[str] = CPU,
    max_flips: float | None = None,
    recalibrate: Sequence[Record] | None = None,
    allow_wrong_base: bool = False,
    enforce: bool = False,
    gate_state: GateState = "inputs",
    layout: LayoutName = "onnx",
    overwrite: bool = False,
    finish: Finish | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExportResult:
    """Export ``vlm`` with ``adapters`` baked in; ``out`` appears only if parity holds.

    Args:
        mode: ``bake`` keeps the interventions' parameters beside the base's weights; ``fold`` puts affine ones into
            them, which adds no node.
        base_onnx: base folder to adapt instead of exporting anew; its weights are copied byte for byte.
        records: evaluation records over which decisions are compared; their prompts serve parity too.
        max_new_tokens: per record.
        recalibrate: calibration records on which thresholds are set again on these graphs, see :mod:`.recalibrate`;
            PyTorch keeps the fitted ones where decisions are compared. None: they stay as fitted.
        max_flips: share of records whose decision may flip; by default what the precision's tolerances say.
        providers: ONNX Runtime execution providers parity runs on.
        allow_wrong_base: accept adapters that were fitted on another model; recorded in the manifest.
        enforce: have the decoder itself force the refusal of requests above the detector's threshold.
        gate_state: how held gates get their decision back while an answer is generated; see :mod:`.gates`. Layouts
            whose runtime knows only the cache always have it there.
        layout: for which runtime the folder is arranged; parity runs before, and what is arranged is compared with it.
        finish: called with the unfinished folder, to add files such as the card, before it is sealed.
        progress: called with the name of each step as it starts.

    Raises:
        UsageError: unsupported architecture, unknown site, an adapter without effect or one that cannot be folded,
            two detectors or none to enforce, no threshold to set again, something that the layout's runtime cannot run,
            ``out`` exists.
        UnsupportedGraph: the base graphs are not understood.
        WrongBase: adapter or base graphs belong to another model.
        ParityFailed: the export does not do what the model does.
    """
    say = progress or (lambda _: None)
    out = Path(out)
    for adapter in adapters:
        if not allow_wrong_base:
            require_base(adapter, vlm.fingerprint, str(vlm.path))
        branch = [adapter.branch.safety, adapter.branch.fused] if adapter.branch else []
        for site in [*(item.site for item in adapter.interventions), *branch]:
            vlm.parts.module(site)  # an unknown site is refused before minutes of exporting
    retriever_of(adapters, vlm.index)  # so is a missing index
    if the_detector(adapters) is None and enforce:
        raise UsageError("There is no detector whose refusal could be enforced.", "Give one, or leave out --enforce.")
    if all(adapter.empty for adapter in adapters):
        raise UsageError("There is nothing to bake: no adapter was given.", "Pass at least one with --adapter.")
    if recalibrate is not None:
        require_thresholds(adapters, recalibrate)
    require_layout(layout, vlm.model.config.model_type, adapters, enforce=enforce)
    gate_state = "cache" if layout in OWN_LOOP else gate_state
    if mode == "fold" and precision in ("int4", "int8"):
        raise UsageError(
            f"Folding into {precision} weights would round the adapter away with them.",
            "Use --mode bake, whose ops stay in full precision, or fold in fp32 or fp16.",
        )
    unfolded = tuple(adapters) if mode == "fold" else ()
    if mode == "fold":
        adapters = fold_all(vlm, adapters)
    layers = plan_updates(vlm, [update for adapter in adapters for update in adapter.updates])
    with atomic_folder(out, overwrite=overwrite) as work:
        base = _write_base(vlm, work, precision, base_onnx, say, allow_wrong_base)
        bare = {name: (work / LAYOUT.graph(name)).read_bytes() for name in GRAPHS}
        base = base.model_copy(update={"wrong_base_allowed": allow_wrong_base})

        def bake(some: Sequence[Adapter]) -> ExportManifest:
            return adapt(work, base, some, layers, mode=mode, enforce=enforce, gate_state=gate_state)

        def opened(manifest: ExportManifest, inputs: InputProcessor = vlm.inputs) -> OnnxVLM:
            index = vlm.index if manifest.retrieval and manifest.retrieval.external else None
            return OnnxVLM(work, manifest, inputs, providers, index=index)

        fitted = tuple(adapters)
        if recalibrate is not None:
            say("setting thresholds again")
            adapters, changes = recalibrated(
                vlm, adapters, lambda some: opened(bake(some)), recalibrate, allow_wrong_base=allow_wrong_base
            )
            base = base.model_copy(update={"recalibrated": changes})
            for name, data in bare.items():
                write_atomic(work / LAYOUT.graph(name), data)
        say("baking")
        manifest = bake(adapters)
        require_movement(work, manifest, place(adapters))
        require_response(work, manifest, place(adapters))
        onnx_vlm = opened(manifest)
        decisions: tuple[Sequence[Decision], Sequence[Decision]] = ((), ())
        if records:
            applied = vlm.applied(*fitted, allow_wrong_base=allow_wrong_base, enforce=enforce)
            decisions = _decide(vlm, onnx_vlm, applied, records, max_new_tokens, say)
        report = check_parity(
            vlm,
            onnx_vlm,
            adapters,
            unfolded=unfolded,
            base=OnnxVLM(work, base, vlm.inputs, providers, bare),
            records=records,
            decisions=decisions if records else None,
            max_new_tokens=max_new_tokens,
            max_flips=max_flips,
            allow_wrong_base=allow_wrong_base,
            progress=say,
        )
        report.require()
        if layout != "onnx":
            say(f"arranging for {layout}")
            manifest = arrange(work, manifest, layout)
            arranged = opened(manifest, InputProcessor.from_pretrained(work))
            gap = compare_arranged(onnx_vlm, arranged, parity_requests(records, set()).values())
            report = report.with_layout(layout, gap)
            report.require()
        report.write(work / LAYOUT.parity)
        if finish:
            finish(work, ExportResult(out, manifest, report, decisions))
        manifest = write_manifest(manifest, work)
    return ExportResult(out, manifest, report, decisions)


def _write_base(
    vlm: VLM,
    work: Path,
    precision: Precision,
    base_onnx: Path | str | None,
    say: Callable[[str], None],
    allow_wrong_base: bool,
) -> ExportManifest:
    """Put base graphs into ``work``: the given ones after checking them, or fresh ones."""
    if base_onnx is None:
        return write_own(vlm, work, precision, say)
    if not (Path(base_onnx) / LAYOUT.manifest).is_file():
        return import_graphs(vlm, Path(base_onnx), work, precision, say, allow_wrong_base=allow_wrong_base)
    manifest = read_manifest(Path(base_onnx))
    if manifest.base.fingerprint != vlm.fingerprint:
        raise WrongBase(
            f"The base graphs in {base_onnx} were exported from model {manifest.base.fingerprint[:12]}, "
            f"but {vlm.path} is {vlm.fingerprint[:12]}.",
            "Export the base graphs of this model, or leave out --base-onnx.",
        )
    if manifest.mode != "base":
        raise UsageError(
            f"The graphs in {base_onnx} hold an adapter already.",
            "Start from unmodified graphs and give all adapters at once: --adapter A --adapter B.",
        )
    if manifest.precision != precision:
        raise UsageError(
            f"The base graphs in {base_onnx} are {manifest.precision}, not {precision}.",
            f"Pass --precision {manifest.precision}, or leave out --base-onnx.",
        )
    copy_base(Path(base_onnx), work, manifest)
    return manifest


def write_own(vlm: VLM, work: Path, precision: Precision, say: Callable[[str], None]) -> ExportManifest:
    """Export the unmodified graphs into the folder ``work``; int4 is fp32 with a quantised decoder.

    Raises:
        UsageError: int8, which is read from others' graphs only.
    """
    if precision == "int8":
        raise UsageError(
            "safetykit does not quantise to int8.", "Pass --precision int4, or an int8 decoder with --base-onnx."
        )
    manifest = write_base(vlm, work, "fp32" if precision == "int4" else precision, say)
    if precision != "int4":
        return manifest
    say("quantising the decoder")
    return quantise_decoder(work, manifest)


def _decide(
    vlm: VLM,
    onnx_vlm: OnnxVLM,
    applied: AbstractContextManager[object],
    records: Sequence[Record],
    max_new_tokens: int,
    say: Callable[[str], None],
) -> tuple[list[Decision], list[Decision]]:
    from ...toolkit.evaluation.evaluate import decide

    say("answering the records with PyTorch")
    with applied:
        ours = decide(vlm, records, max_new_tokens=max_new_tokens)
    say("answering the records with ONNX Runtime")
    return ours, decide(onnx_vlm, records, max_new_tokens=max_new_tokens)
