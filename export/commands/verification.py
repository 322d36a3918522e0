"""`safetykit verify` and `safetykit card`: whether a folder is what it says, and its documents.

No torch is needed, unless parity is run again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...adapters.artifact.files import MANIFEST, read_inside, require_hashes, require_named
from ...adapters.artifact.hub import located
from ...adapters.artifact.policy import in_force, own_work
from ...adapters.artifact.signature import is_signed, sign_manifest
from ...adapters.errors import InvalidArtifact, UsageError
from ...adapters.extras import missing
from ...toolkit.data.sources import is_export
from ...toolkit.model.options import PlaceOptions
from ..document.card import check_card, write_card
from ..manifest import GRAPHS, LAYOUT, ExportManifest, read_manifest
from ..runtime.sessions import require_available
from .choices import VerifyOptions

Say = Callable[[str], None]
_MANIFEST_LIMIT = 16 * 2**20
_RUNS = ("providers", "external_index")  # options of whatever runs graphs


def verify_folder(
    folder: Path,
    model: str | None = None,
    adapters: Sequence[Path] = (),
    options: VerifyOptions | None = None,
    *,
    progress: Say | None = None,
    waiting: Say | None = None,
    **more: Any,
) -> dict[str, Any]:
    """Check an adapter, index or export folder; with ``model`` and the export's ``adapters``, run parity again.

    Args:
        options: see :class:`VerifyOptions`; its fields can be given as keywords too, which win.
        progress: told each step; ``waiting``: why a server is asked again, and an empty text once it answers.

    Raises:
        UsageError: an option cannot act, or other adapters were given than those of the export.
        InvalidArtifact: a file was changed, or is there without being named in the manifest, or the card says what
            its data do not say.
        SignatureFailed: the policy in force refuses the folder.
        ParityFailed: the export does not do what the model does, or what it did when it was made.
    """
    options = VerifyOptions(**more) if options is None else options.but(**more)
    folder = located(folder)
    if (folder / MANIFEST).is_file() and not is_export(folder):
        kind = "index" if _is_index(folder) else "adapter"
        options.require_use(("capturable", "canary"), False, f"graphs: this folder is an {kind}")
        _require_plain(options, model, adapters, f"an export: this folder is an {kind}", _RUNS)
        files = _checked_index(folder) if kind == "index" else _checked_adapter(folder)
        nothing = dict.fromkeys(("card", "report", "interface", "capture", "canary", "parity", "swap"))
        return {"folder": str(folder), "kind": kind, "files": files, "signature": _signature(folder), **nothing}
    if options.swap and is_export(folder):
        from ..runtime.hotswap import require_swappable

        require_swappable(read_manifest(folder, verify=False))
    if model is None:
        if options.swap:
            raise UsageError("Parity of a swapped adapter needs the checkpoint.", "Pass it with --model.")
        runs = () if options.canary else _RUNS
        _require_plain(options, None, adapters, "the checkpoint (--model), with which parity is run again", runs)
    swaps = "an adapter to swap in (--swap)"
    options.require_use(("allow_uncorrected_detector",), bool(options.swap), swaps)
    options.require_use(("served_model",), options.server is not None, "a server (--server)")
    if options.server is not None and model is None:
        options.require_use(_RUNS, False, "graphs that run here: the server chose its own")
    manifest = read_manifest(folder, verify=False)
    if model is not None or (options.canary and options.server is None):
        require_available(options.providers)
    say = progress or (lambda _: None)
    ask = _canaries(folder, manifest, options, say, waiting) if options.canary else None
    if model:
        from .parity_again import parity_again, require_parity_again  # needs torch

        given = require_parity_again(folder, manifest, model, adapters, options)
    say("comparing checksums")
    require_hashes(folder, dict(manifest.files))
    require_named(folder, {LAYOUT.manifest, *manifest.files})
    described = _described(folder, manifest)
    compared = check_card(folder) if (folder / LAYOUT.card).is_file() else None
    canaries = ask() if ask else None
    report = swapped = None
    if model:
        report, swapped = parity_again(folder, manifest, model, given, options, progress)
    return {
        "folder": str(folder),
        "kind": f"export, {manifest.precision}",
        "files": len(manifest.files),
        "signature": _signature(folder),
        "card": "checked" if compared else None,
        "report": compared and ("checked" if LAYOUT.report in compared else "checksum only"),
        "interface": described,
        "capture": captured(folder, manifest) if options.capturable else None,
        "canary": canaries,
        "parity": report.model_dump(mode="json") if report else None,
        "swap": swapped.model_dump(mode="json") if swapped else None,
    }


def _is_index(folder: Path) -> bool:
    try:
        return bool(json.loads(read_inside(folder, MANIFEST, _MANIFEST_LIMIT))["kind"] == "safetykit.index")
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # which reading it as an adapter says better


def _checked_adapter(folder: Path) -> int:
    from ...adapters.artifact.store import load_adapter
    from ...adapters.artifact.store import read_manifest as read_adapter_manifest

    if load_adapter(folder).empty:
        raise InvalidArtifact(
            f"The adapter in {folder} changes nothing and detects nothing: it holds no interventions.",
            "Fit it again, or get it again from its source.",
        )
    named = read_adapter_manifest(folder).files
    require_named(folder, {MANIFEST, *named})
    return len(named)


def _checked_index(folder: Path) -> int:
    from ...toolkit.index.caption_index import CaptionIndex

    named = CaptionIndex.load(folder).manifest.files
    require_named(folder, {MANIFEST, *named})
    return len(named)


def _signature(folder: Path) -> str | None:
    """``accepted`` by the policy in force, ``not checked`` without one, or None for an unsigned folder."""
    if not is_signed(folder):
        return None
    return "not checked" if in_force() is None else "accepted"


def sign_folder(folder: Path, key: Path, certificate: Path | None = None, chain: Sequence[Path] = ()) -> dict[str, Any]:
    """Sign an adapter, index or export folder, once it is what its manifest says.

    Args:
        key, certificate, chain: see :func:`~safetykit.adapters.artifact.signature.sign_manifest`.

    Raises:
        UsageError: a chain without a certificate, or the key cannot sign.
        InvalidArtifact: the folder is not what its manifest says.
    """
    if chain and certificate is None:
        raise UsageError("--chain does nothing without --certificate.", "Leave it out, or pass the certificate.")
    with own_work():  # whoever signs need not have accepted it before
        found = verify_folder(folder)
    place = located(folder)
    signature = sign_manifest(place, LAYOUT.manifest if is_export(place) else MANIFEST, key, certificate, chain)
    return {**{one: found[one] for one in ("folder", "kind", "files")}, "signature": str(signature)}


def _require_plain(
    options: VerifyOptions, model: str | None, adapters: Sequence[Path], needed: str, further: Sequence[str] = ()
) -> None:
    """Refuse everything that only parity reads, and ``further`` options."""
    for name, value in (("--model", model), ("--adapter", adapters)):
        if value:
            raise UsageError(f"{name} does nothing without {needed}.", "Leave it out.")
    names = (
        *further,
        "swap",
        "allow_uncorrected_detector",
        "parity_rows",
        *PlaceOptions.model_fields,
    )
    options.require_use(names, False, needed)


def _described(folder: Path, manifest: ExportManifest) -> str | None:
    """How ``io.json`` was checked: against the graphs where onnx-ir can read them; its digest is checked anyway."""
    if LAYOUT.interface not in manifest.files:
        return None
    if find_spec("onnx_ir") is None:
        return "checksum only"
    from ..layouts.describe import check_interface

    check_interface(folder, manifest)
    return "checked"


def _canaries(
    folder: Path, manifest: ExportManifest, options: VerifyOptions, say: Say, waiting: Say | None
) -> Callable[[], dict[str, Any]]:
    """What asks the canaries, once it is known that there are some, and a server that has the model.

    It tells how many were asked under which providers, and how many of them show that the adapters act.
    """
    from ..runtime.canary import require_recorded

    require_recorded(folder, manifest.files)
    if options.server is not None:
        from ...toolkit.model.endpoint import Endpoint
        from ..runtime.served_canary import require_served_canaries

        say("asking the server which models there are")
        endpoint = Endpoint(options.server, options.served_model, waiting=waiting)

        def served() -> dict[str, Any]:
            say("asking the canaries")
            found = require_served_canaries(folder, manifest.files, endpoint)
            return {"asked": len(found.canaries), "telling": found.telling, "providers": [endpoint.url]}

        return served

    def here() -> dict[str, Any]:
        from ...toolkit.model.inputs import InputProcessor
        from ..runtime.onnx_vlm import OnnxVLM

        say("asking the canaries")
        inputs = InputProcessor.from_pretrained(folder)
        model = OnnxVLM(folder, manifest, inputs, options.providers, index=options.external_index, opened=False)
        found = model.check_canaries()
        return {"asked": len(found.canaries), "telling": found.telling, "providers": list(options.providers)}

    return here


def captured(folder: Path, manifest: ExportManifest) -> dict[str, list[str]]:
    """For each graph file what would break the capture of a CUDA graph; nothing, if nothing does."""
    if find_spec("onnx_ir") is None:
        raise missing("onnx_ir", "Reading the graphs")
    from ..base.reading import loaded
    from ..surgery.capture import capture_obstacles

    names = [manifest.graph_file(graph) for graph in GRAPHS]
    names += [LAYOUT.answering] if LAYOUT.answering in manifest.files else []
    return {name: list(capture_obstacles(loaded(folder / name))) for name in names}


def card_of(folder: Path, *, check: bool) -> dict[str, Any]:
    """Write card and report again, or check that they say what the folder's data say.

    Raises:
        InvalidArtifact: something was changed.
    """
    folder = located(folder)
    if check:
        if LAYOUT.report not in check_card(folder):
            raise missing("matplotlib", "Comparing the report with its data")
    else:
        write_card(folder)
    return {"card": str(folder / LAYOUT.card), "report": str(folder / LAYOUT.report), "checked": check}
