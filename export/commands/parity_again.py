"""Parity of a finished export, for `safetykit verify`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.store import load_adapter
from ...adapters.errors import UsageError
from ...toolkit.data.sources import model_path
from ...toolkit.index.caption_index import CaptionIndex
from ...toolkit.model.folding import fold_all
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.model.options import LoadOptions
from ...toolkit.model.peft_folder import checkpoint_path
from ...toolkit.model.precision import is_large
from ...toolkit.model.shape import decoder_shape, require_same_shape
from ...toolkit.model.vlm import VLM
from ..manifest import ExportManifest
from ..parity.check import check_parity
from ..parity.recalibrate import with_thresholds
from ..parity.reference import computing_wide
from ..parity.report import ParityReport
from ..parity.swap_check import check_swap
from ..pipeline.requirements import require_computable
from ..runtime.hotswap import read_swap
from ..runtime.onnx_vlm import OnnxVLM
from ..runtime.sessions import sparing_memory
from .choices import VerifyOptions


def require_parity_again(
    folder: Path,
    manifest: ExportManifest,
    model: str,
    adapters: Sequence[Path],
    options: VerifyOptions,
) -> list[Adapter]:
    """The export's adapters, refused with all else that manifests and configuration rule out.

    Raises:
        UsageError: other adapters were given than those of the export, or what is to be swapped in does not fit.
        WrongBase: it was exported from another model.
    """
    given = [load_adapter(path) for path in adapters]
    _require_adapters(folder, manifest, given)
    checkpoint = checkpoint_path(model_path(model))
    what = f"{folder} was exported from"
    advice = "Pass the checkpoint that it was exported from with --model."
    require_same_shape(manifest.base, decoder_shape(checkpoint), what, model, advice)
    if options.swap:
        read_swap(options.swap, manifest, allow_uncorrected_detector=options.allow_uncorrected_detector)
    require_computable(checkpoint, options)
    return given


def parity_again(
    folder: Path,
    manifest: ExportManifest,
    model: str,
    given: Sequence[Adapter],
    options: VerifyOptions,
    progress: Callable[[str], None] | None,
) -> tuple[ParityReport, ParityReport | None]:
    """Parity of the export, and of what is to be swapped in.

    Args:
        given: what :func:`require_parity_again` gave.

    Raises:
        UsageError: other adapters were given than those of the export.
        ParityFailed: the export does not do what the model does.
    """
    checkpoint = checkpoint_path(model_path(model))
    # Of a quantised model plain weights, as they were exported.
    vlm = VLM.without_weights(checkpoint, LoadOptions(**options.loading()))
    vlm.index = CaptionIndex.load(options.external_index) if options.external_index else None
    loaded: Sequence[Adapter] = given
    if manifest.mode == "fold":
        with vlm.in_memory():
            loaded = fold_all(vlm, given)
    loaded = with_thresholds(loaded, {one.what: one.threshold for one in manifest.recalibrated})
    if [item.info for item in loaded] != list(manifest.adapters):
        raise _others(folder, manifest)
    with computing_wide(vlm, options), sparing_memory(is_large(vlm.path)):
        return _compared(folder, manifest, vlm, given, loaded, options, progress)


def _compared(
    folder: Path,
    manifest: ExportManifest,
    vlm: VLM,
    given: Sequence[Adapter],
    loaded: Sequence[Adapter],
    options: VerifyOptions,
    progress: Callable[[str], None] | None,
) -> tuple[ParityReport, ParityReport | None]:
    inputs = InputProcessor.from_pretrained(folder)
    onnx_vlm = OnnxVLM(folder, manifest, inputs, options.providers, index=vlm.index, opened=False)
    report = check_parity(
        vlm,
        onnx_vlm,
        loaded,
        unfolded=given if manifest.mode == "fold" else (),
        base=onnx_vlm if manifest.mode == "base" else None,
        allow_wrong_base=manifest.wrong_base_allowed,
        rows=options.parity_rows,
        progress=progress,
    )
    report.require()
    if not options.swap:
        return report, None
    swapped = check_swap(
        vlm,
        onnx_vlm,
        options.swap,
        own=loaded,
        rows=options.parity_rows,
        allow_uncorrected_detector=options.allow_uncorrected_detector,
        progress=progress,
    )
    swapped.require()
    return report, swapped


def _require_adapters(folder: Path, manifest: ExportManifest, given: Sequence[Adapter]) -> None:
    """Refuse other adapters before a model is loaded; which sites are folded is known only then."""
    ours = [(one.method, one.variant, one.data.sha256) for one in manifest.adapters]
    if [(one.info.method, one.info.variant, one.info.data.sha256) for one in given] != ours:
        raise _others(folder, manifest)


def _others(folder: Path, manifest: ExportManifest) -> UsageError:
    return UsageError(
        f"{folder} was exported with {len(manifest.adapters)} other adapter(s) than those given.",
        "Pass the same adapters in the same order with --adapter.",
    )
