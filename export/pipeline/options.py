"""Everything that may be chosen about an export, written once: from here come the command line and its help.

Values and names are checked when options are made. Whether they can act together with these adapters, this model and
these records is for the plan to say, see :mod:`.plan`. No torch is imported here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from ...adapters.artifact.hub import located
from ...adapters.errors import UsageError
from ...adapters.settings import setting
from ...toolkit.evaluation.judges.options import JudgedBy
from ...toolkit.evaluation.options import RecordOptions
from ...toolkit.model.options import LoadOptions
from ..base.int4 import Int4Options
from ..document.facts import LICENCE, MODEL_NAME, MODEL_NAME_LENGTH
from ..layouts.registry import LayoutName
from ..manifest import Precision
from ..options import ParityOptions, RuntimeOptions


def _model_name(given: str | None) -> str | None:
    if given is not None and (len(given) > MODEL_NAME_LENGTH or not re.match(MODEL_NAME, given)):
        raise UsageError(
            f"{given!r} cannot be the name of a base model in a card.",
            f"Write it as on the Hugging Face Hub, such as org/name, in at most {MODEL_NAME_LENGTH} letters.",
        )
    return given


def _located(given: Path | None) -> Path | None:
    return None if given is None else located(given)


def _licence(given: str | None) -> str | None:
    if given is not None and not re.match(LICENCE, given):
        raise UsageError(
            f"{given!r} cannot be a licence in a card.", "Write it as the Hugging Face Hub does, such as apache-2.0."
        )
    return given


class ExportOptions(RecordOptions, Int4Options, ParityOptions, RuntimeOptions, LoadOptions, JudgedBy):
    """How adapters become an export."""

    precision: Precision = setting("fp32", "Of weights; int8 only with base graphs that have it.")
    mode: Literal["bake", "fold", "hot-swap"] = setting(
        "bake",
        "bake parameters beside the base's weights, fold them into these (affine ops), or hot-swap, open to others.",
    )
    layout: LayoutName = setting("onnx", "For which runtime the folder is arranged; onnx is plain files.")
    base_onnx: Annotated[Path | None, AfterValidator(_located)] = setting(
        None, "Put the adapters into these base graphs, instead of exporting new ones."
    )
    enforce: bool = setting(False, "Have the graph itself force a detector's refusals.")
    gate_state: Literal["inputs", "cache"] = setting(
        "inputs", "Where gates that are held through an answer keep their decision.", hidden=True
    )
    recalibrate: bool = setting(False, "Match thresholds to the graphs, on the calibration records of the data.")
    max_flips: float | None = setting(
        None, "Share of records whose decision may flip.", ge=0, le=1, shown="0; fp16 0.002, int8 0.1, int4 0.2"
    )
    canaries: int = setting(
        6, "Requests, of the data if there is some, kept with what they give for verify --canary.", ge=0, le=64
    )
    judges: tuple[str, ...] = setting(
        (),
        "Judges whose figures the card shows beside the usual ones, repeatable, as eval takes them.",
        option="judge",
        shown="none",
    )
    base_model: Annotated[str | None, AfterValidator(_model_name)] = setting(
        None, "How the card calls the base, such as org/name.", shown="the folder's name"
    )
    base_license: Annotated[str | None, AfterValidator(_licence)] = setting(None, "Licence of the base, for the card.")
    allow_wrong_base: bool = setting(False, "Accept an adapter fitted on another model; the card shows it.")
    allow_uncorrected_detector: bool = setting(
        False, "Accept a detector that was not fitted under the correctors beside it; the card shows it."
    )
    overwrite: bool = setting(False, "Replace the output folder if it exists.")

    @classmethod
    def of(cls, options: ExportOptions | None, given: Mapping[str, Any]) -> ExportOptions:
        """``options`` with the keywords in ``given``, which win.

        Raises:
            UsageError: a name or a value that is none, with the nearest one.
        """
        return cls(**given) if options is None else options.but(**given)
