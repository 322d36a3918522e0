"""The whole loop on the bundled reference VLM, in one folder: what `safetykit demo` runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.artifact.output import atomic_folder
from ...adapters.artifact.policy import own_work
from ...adapters.errors import UsageError
from ...adapters.statistics.threads import one_thread
from ...adapters.vlm_guard.settings import VLMGuard
from ...toolkit.commands.console import command_line
from ...toolkit.data.records import load_records
from ...toolkit.data.sources import PREFIX, data_path, model_path
from ...toolkit.model.vlm import VLM
from ..base.own import Progress
from ..pipeline.options import ExportOptions
from .loop import ADAPTER, EXPORT, export_loop

# What the sweep of bench/vlm_guard.py chose on the calibration records of each checkpoint.
SETTINGS = {
    "mild": VLMGuard(variant="steer", direction="svd", gate="paper", layers=(4,), rank=2, alpha=2.0),
    "severe": VLMGuard(variant="steer", direction="svd", gate="paper", layers=(4,), rank=1, alpha=4.0),
}


@dataclass(frozen=True)
class _Clock:
    """Say each step, with the time since the start."""

    start: float
    say: Progress | None

    def __call__(self, step: str) -> None:
        if self.say:
            self.say(step)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


def run_demo(
    out: Path, checkpoint: str = "mild", *, overwrite: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Fit VLM-Guard, export, check parity, evaluate the test split, measure latency, write the card.

    Args:
        out: becomes a folder with ``adapter``, ``base`` (the unmodified export) and ``export``.
        checkpoint: ``mild`` or ``severe``.

    Returns:
        JSON-able summary with everything the terminal shows.

    Raises:
        UsageError: ``out`` is taken, or there is no such checkpoint.
        ParityFailed: then ``out`` does not appear.
    """
    if checkpoint not in SETTINGS:
        raise UsageError(f"There is no reference VLM {checkpoint!r}.", "Choose mild or severe.")
    clock = _Clock(time.monotonic(), progress)
    model = f"{PREFIX}:{checkpoint}"
    # On a model this small, torch's threads cost more than they give.
    with one_thread(blas=False), own_work(), atomic_folder(out, overwrite=overwrite) as work:
        vlm = VLM.from_pretrained(model_path(model))
        records = load_records(data_path(PREFIX), ["fit", "calibration"])
        clock("fitting VLM-Guard")
        adapter = SETTINGS[checkpoint].fit(vlm, records)
        adapter.save(work / ADAPTER)
        asked = next(record for record in load_records(data_path(PREFIX), ["test"]) if record.carrier == "image")
        picture = asked.picture()
        assert picture is not None  # its carrier is `image`
        picture.save(work / "picture.png")
        result = export_loop(model, adapter, work, ExportOptions(data=PREFIX), vlm=lambda: vlm, progress=clock)
    export = out / EXPORT
    return {
        **result,
        "folder": str(export),
        "card": str(export / Path(result["card"]).name),
        "report": str(export / Path(result["report"]).name),
        "checkpoint": checkpoint,
        "adapter": adapter.info.model_dump(mode="json"),
        "seconds": clock.seconds,
        "try": command_line("run", export, "--prompt", asked.prompt, "--image", out / "picture.png"),
    }
