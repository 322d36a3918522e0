"""`safetykit verify` and `safetykit card`: whether a folder is what it says, and its documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.store import MANIFEST, load_adapter
from ...adapters.artifact.store import read_manifest as read_adapter_manifest
from ...adapters.errors import UsageError
from ...toolkit.data.sources import model_path
from ...toolkit.model.folding import fold_all
from ...toolkit.retrieval.index import CaptionIndex
from ..document.card import check_card, write_card
from ..manifest import LAYOUT, ExportManifest, read_manifest
from ..parity.check import check_parity
from ..parity.recalibrate import with_thresholds
from ..parity.report import ParityReport
from ..parity.swap_check import check_swap
from ..runtime.onnx_vlm import OnnxVLM
from .choices import VerifyOptions

Say = Callable[[str], None]


def verify_folder(
    folder: Path,
    model: str | None = None,
    adapters: Sequence[Path] = (),
    options: VerifyOptions | None = None,
    *,
    progress: Say | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Check an adapter or export folder; with ``model`` and the export's ``adapters``, run parity again.

    Args:
        options: see :class:`VerifyOptions`; its fields can be given as keywords too, which win.

    Raises:
        UsageError: an option cannot act, or other adapters were given than those of the export.
        InvalidArtifact: a file was changed, or the card says what its data do not say.
        ParityFailed: the export does not do what the model does.
    """
    options = VerifyOptions(**given) if options is None else options.but(**given)
    if (folder / MANIFEST).is_file():
        _require_plain(options, model, adapters, "an export: this folder is an adapter")
        load_adapter(folder)
        files = len(read_adapter_manifest(folder).files)
        return {"folder": str(folder), "kind": "adapter", "files": files, "card": None, "parity": None, "swap": None}
    if model is None:
        if options.swap:
            raise UsageError("Parity of a swapped adapter needs the checkpoint.", "Pass it with --model.")
        _require_plain(options, None, adapters, "the checkpoint (--model), with which parity is run again")
    manifest = read_manifest(folder)
    has_card = (folder / LAYOUT.card).is_file()
    if has_card:
        check_card(folder)
    report, swapped = _again(folder, manifest, model, adapters, options, progress) if model else (None, None)
    return {
        "folder": str(folder),
        "kind": f"export, {manifest.precision}",
        "files": len(manifest.files),
        "card": "checked" if has_card else None,
        "parity": report.model_dump(mode="json") if report else None,
        "swap": swapped.model_dump(mode="json") if swapped else None,
    }


def _require_plain(options: VerifyOptions, model: str | None, adapters: Sequence[Path], needed: str) -> None:
    """Refuse everything that only parity reads."""
    for name, value in (("--model", model), ("--adapter", adapters)):
        if value:
            raise UsageError(f"{name} does nothing without {needed}.", "Leave it out.")
    options.require_use(("swap", "providers", "external_index"), False, needed)


def _again(
    folder: Path,
    manifest: ExportManifest,
    model: str,
    adapters: Sequence[Path],
    options: VerifyOptions,
    progress: Say | None,
) -> tuple[ParityReport, ParityReport | None]:
    """Parity of the export, and of what is to be swapped in."""
    from ...toolkit.model.vlm import VLM

    given = [load_adapter(path) for path in adapters]
    _require_adapters(folder, manifest, given)
    vlm = VLM.from_pretrained(model_path(model))
    vlm.index = CaptionIndex.load(options.external_index) if options.external_index else None
    loaded: Sequence[Adapter] = fold_all(vlm, given) if manifest.mode == "fold" else given
    loaded = with_thresholds(loaded, {one.what: one.threshold for one in manifest.recalibrated})
    if [item.info for item in loaded] != list(manifest.adapters):
        raise _others(folder, manifest)
    onnx_vlm = OnnxVLM.from_pretrained(folder, options.providers, index=vlm.index)
    report = check_parity(
        vlm,
        onnx_vlm,
        loaded,
        unfolded=given if manifest.mode == "fold" else (),
        base=onnx_vlm if manifest.mode == "base" else None,
        allow_wrong_base=manifest.wrong_base_allowed,
        progress=progress,
    )
    report.require()
    if not options.swap:
        return report, None
    swapped = check_swap(vlm, onnx_vlm, options.swap, own=loaded, progress=progress)
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
    return {"card": str(folder / LAYOUT.card), "report": str(folder / LAYOUT.report), "checked": check}
