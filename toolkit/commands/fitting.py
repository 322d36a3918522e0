"""What every `safetykit fit` command shares: checking options, loading, saving, showing."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ...adapters.artifact.adapter import Adapter
from ...adapters.artifact.files import require_free
from ...adapters.artifact.store import load_adapter
from ...adapters.errors import UsageError
from ..data.records import Record, Split, load_records
from ..data.sources import data_path, model_path
from ..evaluation.evaluate import Progress
from ..model.vlm import VLM
from . import console, views

Make = Callable[[VLM, list[Record], Progress], Adapter]


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """``3-5`` or ``2,4,6-7`` as layers.

    Raises:
        UsageError: anything else.
    """
    if text is None:
        return None
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if match is None or (match[2] and int(match[2]) < int(match[1])):
            raise UsageError(
                f"--layers {text!r} names no layers.", "Write for example 3-5 or 2,4; layers count from 0."
            )
        layers |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(layers))


def require_choices(given: Mapping[str, Any], choices: Mapping[str, Any]) -> None:
    """Refuse an option whose value is none of its ``Literal``, before a model is loaded.

    Raises:
        UsageError: naming what there is.
    """
    for name, literal in choices.items():
        if name in given and given[name] not in get_args(literal):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} cannot be {given[name]!r}.", f"It is one of {', '.join(get_args(literal))}.")


def fit_and_save(
    model: str,
    data: str,
    out: Path,
    make: Make,
    *,
    splits: Sequence[Split] = ("fit", "calibration"),
    doing: str = "fitting",
    corrected_by: Sequence[Path] = (),
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Load model and records, make the adapter, save it and show it.

    Args:
        make: from model, records and progress to the adapter.
        corrected_by: adapters that are applied while ``make`` runs; a detector for a corrected model is fitted so.

    Raises:
        SafetykitError: whatever was wrong; nothing is written then.
    """
    require_free(out, overwrite=overwrite)
    records = load_records(data_path(data), splits)
    correctors = [load_adapter(folder) for folder in corrected_by]
    vlm = VLM.from_pretrained(model_path(model))
    with console.progress_bar(doing) as update, vlm.applied(*correctors):
        adapter = make(vlm, records, update)
    adapter.save(out, overwrite=overwrite)
    console.emit(
        {"adapter": str(out), **adapter.info.model_dump(mode="json"), "sweep": adapter.attachments.get("sweep")},
        as_json=as_json,
        human=views.fit,
    )
