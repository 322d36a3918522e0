"""Options of what runs an export under ONNX Runtime, shared by several commands. No torch is imported here."""

from __future__ import annotations

from pathlib import Path

from ..adapters.settings import setting
from ..toolkit.evaluation.options import Options
from .runtime.sessions import CPU


class RuntimeOptions(Options):
    """Under what an export runs."""

    providers: tuple[str, ...] = setting(
        CPU, "ONNX Runtime provider; repeat for several.", option="provider", shown=CPU[0], min_length=1
    )
    external_index: Path | None = setting(None, "Index that retrieval searches outside the graph.")


class ParityOptions(Options):
    """How much of parity is run."""

    parity_rows: int | None = setting(
        None, "Compare at most this many prompts with PyTorch, of as many kinds as that holds.", ge=1, shown="all"
    )


class SwapOptions(RuntimeOptions):
    """And with which parameters."""

    swap: tuple[Path, ...] = setting(
        (),
        "Run a hot-swap export with this adapter folder, export or .onnx_adapter file instead; repeat to stack.",
        shown="its own adapters",
    )
    allow_uncorrected_detector: bool = setting(
        False, "Accept a detector that was not fitted under the correctors beside it."
    )
