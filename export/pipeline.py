"""The whole export: base graphs → bake → manifest → parity → the folder appears, or nothing does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.adapter import Adapter
from ..adapters.errors import UsageError, WrongBase
from ..adapters.files import atomic_folder
from ..adapters.store import require_base
from .adapt import adapt, copy_base, place
from .base import write_base
from .exposed import require_movement
from .layout import GRAPHS, LAYOUT, ExportManifest, Precision, read_manifest, write_manifest
from .parity import ParityReport, check_parity
from .runtime import OnnxVLM
from .sessions import CPU

if TYPE_CHECKING:
    from ..toolkit.evaluate import Decision
    from ..toolkit.records import Record
    from ..toolkit.vlm import VLM

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
    base_onnx: Path | str | None = None,
    records: Sequence[Record] = (),
    max_new_tokens: int = 32,
    providers: Sequence[str] = CPU,
    allow_wrong_base: bool = False,
    overwrite: bool = False,
    finish: Finish | None = None,
    progress: Callable[[str], None] | None = None,
) -> ExportResult:
    """Export ``vlm`` with ``adapters`` baked in; ``out`` appears only if parity holds.

    Args:
        base_onnx: base folder to adapt instead of exporting anew; its weights are copied byte for byte.
        records: evaluation records over which decisions are compared; their prompts serve parity too.
        max_new_tokens: per record.
        providers: ONNX Runtime execution providers parity runs on.
        allow_wrong_base: accept adapters that were fitted on another model; recorded in the manifest.
        finish: called with the unfinished folder, to add files such as the card, before it is sealed.
        progress: called with the name of each step as it starts.

    Raises:
        UsageError: unsupported architecture, unknown site, an adapter without effect, ``out`` exists.
        UnsupportedGraph: the base graphs are not understood.
        WrongBase: adapter or base graphs belong to another model.
        ParityFailed: the export does not do what the model does.
    """
    say = progress or (lambda _: None)
    out = Path(out)
    for adapter in adapters:
        if not allow_wrong_base:
            require_base(adapter, vlm.fingerprint, str(vlm.path))
        for item in adapter.interventions:
            vlm.parts.module(item.site)  # an unknown site is refused before minutes of exporting
    if not any(adapter.interventions for adapter in adapters):
        raise UsageError("There is nothing to bake: no adapter was given.", "Pass at least one with --adapter.")
    with atomic_folder(out, overwrite=overwrite) as work:
        base = _write_base(vlm, work, precision, base_onnx, say)
        bare = {name: (work / LAYOUT.graph(name)).read_bytes() for name in GRAPHS}
        say("baking")
        manifest = adapt(work, base.model_copy(update={"wrong_base_allowed": allow_wrong_base}), adapters)
        require_movement(work, manifest, place(adapters))
        onnx_vlm = OnnxVLM(work, manifest, vlm.inputs, providers)
        decisions: tuple[Sequence[Decision], Sequence[Decision]] = ((), ())
        if records:
            decisions = _decide(vlm, onnx_vlm, adapters, records, max_new_tokens, allow_wrong_base, say)
        report = check_parity(
            vlm,
            onnx_vlm,
            adapters,
            base=OnnxVLM(work, base, vlm.inputs, providers, bare),
            records=records,
            decisions=decisions if records else None,
            max_new_tokens=max_new_tokens,
            allow_wrong_base=allow_wrong_base,
            progress=say,
        )
        report.require()
        report.write(work / LAYOUT.parity)
        if finish:
            finish(work, ExportResult(out, manifest, report, decisions))
        manifest = write_manifest(manifest, work)
    return ExportResult(out, manifest, report, decisions)


def _write_base(
    vlm: VLM, work: Path, precision: Precision, base_onnx: Path | str | None, say: Callable[[str], None]
) -> ExportManifest:
    """Put base graphs into ``work``: the given ones after checking them, or fresh ones."""
    if base_onnx is None:
        return write_base(vlm, work, precision, say)
    manifest = read_manifest(Path(base_onnx))
    if manifest.base.fingerprint != vlm.fingerprint:
        raise WrongBase(
            f"The base graphs in {base_onnx} were exported from model {manifest.base.fingerprint[:12]}, "
            f"but {vlm.path} is {vlm.fingerprint[:12]}.",
            "Export the base graphs of this model, or leave out --base-onnx.",
        )
    if manifest.precision != precision:
        raise UsageError(
            f"The base graphs in {base_onnx} are {manifest.precision}, not {precision}.",
            f"Pass --precision {manifest.precision}, or leave out --base-onnx.",
        )
    copy_base(Path(base_onnx), work, manifest)
    return manifest


def _decide(
    vlm: VLM,
    onnx_vlm: OnnxVLM,
    adapters: Sequence[Adapter],
    records: Sequence[Record],
    max_new_tokens: int,
    allow_wrong_base: bool,
    say: Callable[[str], None],
) -> tuple[list[Decision], list[Decision]]:
    from ..toolkit.evaluate import decide

    say("answering the records with PyTorch")
    with vlm.applied(*adapters, allow_wrong_base=allow_wrong_base):
        ours = decide(vlm, records, max_new_tokens=max_new_tokens)
    say("answering the records with ONNX Runtime")
    return ours, decide(onnx_vlm, records, max_new_tokens=max_new_tokens)
