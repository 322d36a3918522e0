"""The whole loop on the bundled reference VLM, in one folder: what `safetykit demo` runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.artifact.files import write_atomic
from ...adapters.artifact.manifest import canonical_json
from ...adapters.artifact.output import atomic_folder
from ...adapters.artifact.policy import own_work
from ...adapters.errors import UsageError
from ...adapters.statistics.threads import one_thread
from ...adapters.vlm_guard.settings import VLMGuard
from ...toolkit.commands.console import command_line
from ...toolkit.data.records import load_records, subset
from ...toolkit.data.sources import PREFIX, data_path, model_path
from ...toolkit.model.asking import request_of
from ...toolkit.model.vlm import VLM
from ..base.own import Progress, export_base
from ..document.figures import LATENCY
from ..document.latency import Latency, measure_latency
from ..pipeline.export import export_onnx
from ..runtime.onnx_vlm import OnnxVLM
from ..runtime.sessions import CPU

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
        adapter.save(work / "adapter")
        export_base(vlm, work / "base", progress=clock)
        found: list[Latency] = []

        def measure(folder: Path) -> None:
            clock("measuring latency")
            found.append(_latency(folder, work / "base"))
            write_atomic(folder / LATENCY, canonical_json(found[0].model_dump(mode="json")))

        asked = next(record for record in load_records(data_path(PREFIX), ["test"]) if record.carrier == "image")
        picture = asked.picture()
        assert picture is not None  # its carrier is `image`
        picture.save(work / "picture.png")
        result = export_onnx(
            model, [adapter], work / "export", data=PREFIX, base_onnx=work / "base", measure=measure, progress=clock
        ).describe()
    export = out / "export"
    return {
        **result,
        "folder": str(export),
        "card": str(export / Path(result["card"]).name),
        "report": str(export / Path(result["report"]).name),
        "checkpoint": checkpoint,
        "adapter": adapter.info.model_dump(mode="json"),
        "latency": found[0].model_dump(mode="json"),
        "seconds": clock.seconds,
        "try": command_line("run", export, "--prompt", asked.prompt, "--image", out / "picture.png"),
    }


def _latency(baked: Path, base: Path) -> Latency:
    records = [record for record in load_records(data_path(PREFIX), ["test"]) if record.image]
    requests = [request_of(record) for record in subset(records, 4)]
    models = [OnnxVLM.from_pretrained(folder, verify=False) for folder in (baked, base, base)]
    return measure_latency(models[0], models[1], requests, control=models[2], providers=CPU)
