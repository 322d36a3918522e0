"""From a fitted adapter to an export that is checked, timed and documented: what `demo` and `quickstart` both do.

Each part is a folder that appears whole, and one that is there is not made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.files import write_atomic
from ...adapters.artifact.manifest import canonical_json
from ...toolkit.data.records import Record, subset
from ...toolkit.model.asking import request_of
from ..base.own import export_base
from ..document.figures import LATENCY
from ..document.latency import Latency, measure_latency
from ..manifest import LAYOUT
from ..pipeline.export import export_onnx
from ..pipeline.options import ExportOptions
from ..runtime.onnx_vlm import OnnxVLM
from ..runtime.sessions import CPU

if TYPE_CHECKING:
    from ...toolkit.evaluation.evaluate import Decision
    from ...toolkit.model.vlm import VLM

ADAPTER, BASE, EXPORT = "adapter", "base", "export"
_TIMED = 4  # requests in the batch that latency is measured on


def export_loop(
    model: str,
    adapter: Adapter | Path,
    folder: Path,
    options: ExportOptions,
    *,
    vlm: Callable[[], VLM],
    answered: Sequence[Decision] = (),
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Export the unmodified model into ``folder/base`` and the adapter in it into ``folder/export``.

    Args:
        options: with the records that decisions are compared on.
        vlm: gives the model; its weights need not be loaded.
        answered: what the unmodified model answers to the records, if it is known.

    Returns:
        What :meth:`~safetykit.export.pipeline.export.ExportResult.describe` says, and the latency.

    Raises:
        ParityFailed: then there is no ``folder/export``.
        UsageError: it cannot be exported.
    """
    base, export = folder / BASE, folder / EXPORT
    if not base.exists():
        export_base(vlm(), base, progress=progress)
    if not export.exists():

        def measure(written: Path) -> None:
            progress("measuring latency")
            found = _latency(written, base, options.records())
            write_atomic(written / LATENCY, canonical_json(found.model_dump(mode="json")))

        given = options.but(base_onnx=base)
        export_onnx(model, [adapter], export, given, answered=answered, measure=measure, progress=progress)
    return described(export)


def described(export: Path) -> dict[str, Any]:
    """What an export that was made here says of itself."""
    found: dict[str, Any] = {
        "folder": str(export),
        "card": str(export / LAYOUT.card),
        "report": str(export / LAYOUT.report),
    }
    for name, file in (("parity", LAYOUT.parity), ("comparison", LAYOUT.evaluation), ("latency", LATENCY)):
        found[name] = json.loads((export / file).read_bytes())
    for side in ("before", "after"):
        del found["comparison"][side]["decisions"]
    return found


def _latency(baked: Path, base: Path, records: Sequence[Record]) -> Latency:
    pictured = [record for record in records if record.plain and record.pictured]
    requests = [request_of(record) for record in subset(pictured or records, _TIMED)]
    models = [OnnxVLM.from_pretrained(folder, verify=False) for folder in (baked, base, base)]
    return measure_latency(models[0], models[1], requests, control=models[2], providers=CPU)
