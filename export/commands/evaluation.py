"""What the commands do with an export: evaluate it, document it, verify it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.files import write_atomic
from ...adapters.artifact.manifest import canonical_json
from ...adapters.artifact.store import MANIFEST as ADAPTER_MANIFEST
from ...adapters.artifact.store import load_adapter
from ...adapters.artifact.store import read_manifest as read_adapter_manifest
from ...adapters.errors import UsageError
from ...adapters.retrieval.retrieval import CAPTIONS
from ...toolkit.data.journal import Journal
from ...toolkit.data.records import Record, load_records, subset
from ...toolkit.data.sources import PREFIX, data_path, model_path
from ...toolkit.evaluation.evaluate import Evaluation, Progress, evaluate, tabulate
from ...toolkit.model.folding import fold_all
from ...toolkit.retrieval.index import CaptionIndex
from ..base.own import Progress as Say
from ..document.card import check_card, write_card
from ..document.figures import FACTS, CardFacts, attachment_name
from ..manifest import LAYOUT, LayoutName, Precision, read_manifest
from ..parity.check import check_parity
from ..parity.comparison import Comparison
from ..parity.recalibrate import with_thresholds
from ..parity.report import ParityReport
from ..parity.swap_check import check_swap
from ..pipeline.pipeline import ExportResult, export_onnx
from ..runtime.onnx_vlm import OnnxVLM
from ..runtime.sessions import CPU


def is_export(folder: Path) -> bool:
    """Whether a folder is an export (and not a checkpoint or an adapter)."""
    return (folder / LAYOUT.manifest).is_file()


def chosen_records(data: str, split: str, limit: int | None) -> list[Record]:
    """The records of a split, at most ``limit`` of them."""
    if split not in ("fit", "calibration", "test"):
        raise UsageError(f"There is no split {split!r}.", "Splits are fit, calibration and test.")
    records = load_records(data_path(data), [split])  # type: ignore[list-item]
    return subset(records, limit) if limit else records


def evaluate_model(
    model: str,
    data: str,
    adapters: Sequence[Path],
    *,
    split: str = "test",
    limit: int | None = None,
    max_new_tokens: int = 32,
    out: Path | None = None,
    providers: Sequence[str] = CPU,
    allow_wrong_base: bool = False,
    external_index: Path | None = None,
    swap: Sequence[Path] = (),
    system: str = "",
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a checkpoint, with or without adapters, or an export folder.

    With ``out``, finished batches are kept beside it until the end, so that an interrupted
    evaluation goes on where it was.

    Args:
        swap: what a hot-swap export is to run with instead of its own adapters.
        system: what the operator tells the model before every request, such as a safety system prompt.

    Raises:
        UsageError: adapters were given for an export, which holds its own, or the model takes no system turn.
    """
    records = chosen_records(data, split, limit)
    if is_export(Path(model)):
        if adapters:
            raise UsageError(
                "An export holds its adapters already.", "Leave out --adapter, or evaluate the checkpoint."
            )
        onnx_vlm = OnnxVLM.from_pretrained(Path(model), providers, index=external_index)
        identity: list[Any] = [onnx_vlm.manifest.model_dump(mode="json")]
        if swap:
            onnx_vlm.swap(*swap)
            identity.append(onnx_vlm.swapped.digest())  # type: ignore[union-attr]
        source: Any = onnx_vlm
    else:
        from ...toolkit.model.vlm import VLM

        if swap:
            raise UsageError("A checkpoint has no adapter to swap.", "Pass it with --adapter.")
        vlm = VLM.from_pretrained(model_path(model))
        vlm.index = CaptionIndex.load(external_index) if external_index else None
        loaded = [load_adapter(folder) for folder in adapters]
        identity = [vlm.fingerprint, *(read_adapter_manifest(folder).files for folder in adapters)]
        source = vlm
    identity += [[record.digest() for record in records], max_new_tokens, system]
    journal = Journal(out.parent / f".{out.name}.partial.jsonl", identity) if out else None

    def answered() -> Evaluation:
        return evaluate(
            source,
            records,
            name=model,
            max_new_tokens=max_new_tokens,
            progress=progress,
            journal=journal,
            system=system,
        )

    if isinstance(source, OnnxVLM):
        result = answered()
    else:
        with source.applied(*loaded, allow_wrong_base=allow_wrong_base):
            result = answered()
    if out and journal:
        write_atomic(out, canonical_json(result.model_dump(mode="json")))
        journal.finish()
    return result


def export_with_documents(
    model: str,
    out: Path,
    adapters: Sequence[Path | Adapter],
    *,
    data: str | None = None,
    split: str = "test",
    limit: int | None = None,
    max_new_tokens: int = 32,
    precision: str = "fp32",
    mode: str = "bake",
    base_onnx: Path | None = None,
    providers: Sequence[str] = CPU,
    max_flips: float | None = None,
    recalibrate: bool = False,
    allow_wrong_base: bool = False,
    enforce: bool = False,
    layout: str = "onnx",
    external_index: Path | None = None,
    overwrite: bool = False,
    base_model: str | None = None,
    base_license: str | None = None,
    progress: Say | None = None,
    measure: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Export and write evaluation, card and report into the folder before it appears.

    Args:
        mode: ``bake``, ``fold`` or ``hot-swap``.
        max_flips: share of the records whose decision may flip; see :func:`export_onnx`.
        recalibrate: set thresholds again on the exported graphs, over the calibration records of ``data``.
        enforce: have the graph itself force a detector's refusals.
        layout: for which runtime the folder is arranged.
        external_index: what an adapter searches whose index stays outside the graph.
        base_model: how the card calls the base; by default the last part of its path.
        base_license: its licence as the Hugging Face Hub spells it.
        measure: called with the finished graphs' folder, to add measurements that the card shows.

    Returns:
        JSON-able: folder, card, report, parity report, and the comparison if there are records.
    """
    from ...toolkit.model.vlm import VLM

    if precision not in get_args(Precision):
        raise UsageError(f"--precision cannot be {precision!r}.", f"It is one of {', '.join(get_args(Precision))}.")
    if layout not in get_args(LayoutName):
        raise UsageError(f"--layout cannot be {layout!r}.", f"It is one of {', '.join(get_args(LayoutName))}.")
    if mode not in ("bake", "fold", "hot-swap"):
        raise UsageError(f"--mode cannot be {mode!r}.", "It is one of bake, fold, hot-swap.")
    if recalibrate and not data:
        raise UsageError("--recalibrate needs records.", "Pass --data with a calibration split.")
    loaded = [item if isinstance(item, Adapter) else load_adapter(item) for item in adapters]
    records = chosen_records(data, split, limit) if data else []
    vlm = VLM.from_pretrained(model_path(model))
    vlm.index = CaptionIndex.load(external_index) if external_index else None
    comparison: Comparison | None = None

    def finish(work: Path, result: ExportResult) -> None:
        nonlocal comparison
        if records:
            if progress:
                progress("answering the records without the adapter")
            before = evaluate(vlm, records, name=model, max_new_tokens=max_new_tokens)
            decisions = result.decisions[1]
            after = Evaluation(
                model=out.name,
                split=before.split,
                max_new_tokens=max_new_tokens,
                rows=tabulate(decisions),
                decisions=tuple(decisions),
            )
            comparison = Comparison.of(before, after, records, dataset=str(data))
            write_atomic(work / LAYOUT.evaluation, canonical_json(comparison.model_dump(mode="json")))
        for number, one in enumerate(loaded):
            for name, value in one.attachments.items():
                if name == CAPTIONS:
                    continue  # they are in the folder, as captions.jsonl
                write_atomic(work / attachment_name(name, number), canonical_json(value))
        facts = CardFacts(base_model=base_model or _model_name(model), base_license=base_license or _licence(model))
        write_atomic(work / FACTS, canonical_json(facts.model_dump(mode="json")))
        if measure:
            measure(work)
        if progress:
            progress("writing the card and the report")
        write_card(work)

    result = export_onnx(
        vlm,
        loaded,
        out,
        precision=precision,  # type: ignore[arg-type]
        mode=mode,  # type: ignore[arg-type]
        base_onnx=base_onnx,
        records=records,
        max_new_tokens=max_new_tokens,
        providers=providers,
        max_flips=max_flips,
        recalibrate=chosen_records(data, "calibration", None) if recalibrate and data else None,
        allow_wrong_base=allow_wrong_base,
        enforce=enforce,
        layout=layout,  # type: ignore[arg-type]
        overwrite=overwrite,
        finish=finish,
        progress=progress,
    )
    return {
        "folder": str(out),
        **_documents(out),
        "parity": result.parity.model_dump(mode="json"),
        "comparison": _without_decisions(comparison),
    }


def verify_folder(
    folder: Path,
    model: str | None,
    adapters: Sequence[Path],
    *,
    providers: Sequence[str] = CPU,
    external_index: Path | None = None,
    swap: Sequence[Path] = (),
    progress: Say | None = None,
) -> dict[str, Any]:
    """Check an adapter or export folder; with ``model`` and ``adapters``, run parity again.

    Args:
        swap: adapters whose parity is checked too, in the place of a hot-swap export's own.

    Raises:
        InvalidArtifact: a file was changed, or the card says what its data do not say.
        ParityFailed: the export does not do what the model does.
    """
    if (folder / ADAPTER_MANIFEST).is_file():
        load_adapter(folder)
        files = len(read_adapter_manifest(folder).files)
        return {"folder": str(folder), "kind": "adapter", "files": files, "card": None, "parity": None, "swap": None}
    manifest = read_manifest(folder)
    has_card = (folder / LAYOUT.card).is_file()
    if has_card:
        check_card(folder)
    report: ParityReport | None = None
    swapped: ParityReport | None = None
    if swap and model is None:
        raise UsageError("Parity of a swapped adapter needs the checkpoint.", "Pass it with --model.")
    if model is not None:
        from ...toolkit.model.vlm import VLM

        vlm = VLM.from_pretrained(model_path(model))
        vlm.index = CaptionIndex.load(external_index) if external_index else None
        given = [load_adapter(path) for path in adapters]
        loaded = list(fold_all(vlm, given)) if manifest.mode == "fold" else given
        loaded = list(with_thresholds(loaded, {one.what: one.threshold for one in manifest.recalibrated}))
        if [item.info for item in loaded] != list(manifest.adapters):
            raise UsageError(
                f"{folder} was exported with {len(manifest.adapters)} other adapter(s) than those given.",
                "Pass the same adapters in the same order with --adapter.",
            )
        onnx_vlm = OnnxVLM.from_pretrained(folder, providers, index=vlm.index)
        report = check_parity(
            vlm,
            onnx_vlm,
            loaded,
            unfolded=given if manifest.mode == "fold" else (),
            allow_wrong_base=manifest.wrong_base_allowed,
            progress=progress,
        )
        report.require()
        if swap:
            swapped = check_swap(vlm, onnx_vlm, [load_adapter(path) for path in swap], progress=progress)
            swapped.require()
    return {
        "folder": str(folder),
        "kind": f"export, {manifest.precision}",
        "files": len(manifest.files),
        "card": "checked" if has_card else None,
        "parity": report.model_dump(mode="json") if report else None,
        "swap": swapped.model_dump(mode="json") if swapped else None,
    }


def card_of(folder: Path, *, check: bool) -> dict[str, Any]:
    """Write card and report again, or check that they say what the folder's data say.

    Raises:
        InvalidArtifact: something was changed.
    """
    if check:
        read_manifest(folder)
        check_card(folder)
    else:
        write_card(folder)
    return {**_documents(folder), "checked": check}


def _model_name(model: str) -> str:
    """A name the card can show: the last part of the path, without what a model id cannot hold."""
    name = f"safetykit-{model.replace(':', '-')}" if model.startswith(f"{PREFIX}:") else Path(model).resolve().name
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:96] or "model"


def _licence(model: str) -> str | None:
    return "apache-2.0" if model.startswith(f"{PREFIX}:") else None


def _documents(folder: Path) -> dict[str, str]:
    return {"card": str(folder / LAYOUT.card), "report": str(folder / "report.html")}


def _without_decisions(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    return comparison.model_dump(mode="json", exclude={"before": {"decisions"}, "after": {"decisions"}})
