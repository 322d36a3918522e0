"""What may be chosen in `eval`, `run` and `verify`: from here come their options and help. It needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...adapters.ranges import seed_setting
from ...adapters.settings import POSITIVE, Condition, setting
from ...toolkit.data.options import RECORDS, ReadOptions
from ...toolkit.defences.names import DefenceName
from ...toolkit.evaluation.judges.options import JudgeOptions
from ...toolkit.evaluation.options import TRUNCATE, PromptOptions, RecordOptions
from ...toolkit.model.options import LoadOptions, PlaceOptions
from ..options import ParityOptions, SwapOptions


def served_model_setting(*, acts: Condition | Sequence[Condition] = ()) -> Any:
    """The field by which a model of a server is chosen; see :func:`~safetykit.adapters.settings.setting`."""
    return setting(None, "Which model of a server answers.", shown="its only one", acts=acts)


class EvalOptions(RecordOptions, PromptOptions, SwapOptions, LoadOptions, JudgeOptions):
    """How records are answered, by a checkpoint or an export."""

    data: str = setting(..., RECORDS)
    system: str = setting("", "A system prompt before every request.", shown="none")
    truncate: bool = setting(False, TRUNCATE)
    defence: DefenceName | None = setting(
        None, "Answer behind a defence: a shield prompt, or answers that the model judges itself.", shown="none"
    )
    served_model: str | None = served_model_setting()
    allow_wrong_base: bool = setting(False, "Accept an adapter fitted on another model.")
    overwrite: bool = setting(False, "Replace the file of --out if it exists.")


class DiagnoseOptions(ReadOptions, LoadOptions):
    """How much is measured, how the model is loaded, and how records are read."""

    budget: int | None = setting(None, "Most forward passes; less is measured then.", ge=1, shown="none")
    pairs: int = setting(128, "Pairs per modality, at most.", ge=8)
    neurons: int = setting(32, "Neurons verified by patching, per modality; 0 for none.", ge=0)
    seed: int = seed_setting("Of intervals, folds and neurons drawn for comparison.")


class RunOptions(PromptOptions, SwapOptions):
    """How an export answers."""

    prompt_chunk: int | None = setting(
        None,
        "Read longer prompts in parts of at most so many tokens; refused where adapters act by the whole of one.",
        ge=3,
        shown="in one part",
    )

    max_new_tokens: int = setting(64, "Longest answer, in tokens.", ge=1)
    temperature: float = setting(0.0, "Of sampling; 0 is greedy.", ge=0)
    top_p: float = setting(1.0, "Share of probability to sample from.", acts={"temperature": POSITIVE}, gt=0, le=1)
    seed: int = seed_setting("Of sampling.", acts={"temperature": POSITIVE})
    system: str = setting("", "A system prompt before every request.", shown="none")


class VerifyOptions(ParityOptions, SwapOptions, PlaceOptions):
    """How parity is run again, and what else is looked at."""

    canary: bool = setting(False, "Ask the requests that were recorded with the export, on this runtime and provider.")
    server: str | None = setting(
        None, "Address of a server, which is asked instead.", shown="none", acts={"canary": True}
    )
    served_model: str | None = served_model_setting(acts={"canary": True})
    capturable: bool = setting(False, "Say for each graph what would break the capture of a CUDA graph.")
