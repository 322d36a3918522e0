"""Whether budgets that adapters were fitted under held on the records of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...adapters.budget import groups_of
from ...adapters.errors import UsageError
from ...toolkit.data.records import Record
from ...toolkit.evaluation.evaluate import Decision


def kept_budgets(
    folders: Sequence[Path], records: Callable[[], Sequence[Record]], decisions: Sequence[Decision]
) -> list[dict[str, Any]]:
    """For each budget on over-refusal: how much is refused, the mean over groups as the budget counts it.

    The model's own refusals count here as well, so what holds held; what does not may be the model's.

    Args:
        folders: of adapters. ``records``: reads those that were answered, or more.
    """
    if not folders:  # of an export, which runs without torch
        return []
    from ...adapters.artifact.store import load_adapter

    promised = {folder: load_adapter(folder).attachments.get("budget") for folder in folders}
    if not any(promised.values()):
        return []
    refused = {one.id: one.outcome == "refused" for one in decisions}
    answered = [record for record in records() if record.id in refused]
    found = []
    for folder, budget in promised.items():
        if not isinstance(budget, Mapping):
            continue
        kept: Any = budget["kept"]
        seen = _seen(budget["unit"], answered, refused)
        for row in kept:
            if row["what"] == "over-refusal" and seen["groups"]:
                value = {"adapter": str(folder), "unit": budget["unit"], "confidence": budget["confidence"], **seen}
                found.append({**value, "budget": row["budget"], "held": seen["over_refusal"] <= row["budget"]})
    return found


def _seen(unit: Any, records: Sequence[Record], refused: dict[str, bool]) -> dict[str, Any]:
    by_group: dict[str, list[bool]] = {}
    for split in sorted({record.split for record in records}):
        try:
            groups = groups_of(records, unit, split=split, seen=())
        except UsageError:  # these records name no group
            return {"groups": 0, "over_refusal": None}
        for record, name in zip(groups.records, groups.names, strict=True):
            by_group.setdefault(name, []).append(refused[record.id])
    shares = [float(np.mean(found)) for found in by_group.values()]
    return {"groups": len(shares), "over_refusal": float(np.mean(shares)) if shares else None}


def told(found: dict[str, Any]) -> str:
    """One of them as a sentence."""
    units = {"group": "groups", "category": "categories", "record": "records"}[found["unit"]]
    verb = "held" if found["held"] else "is exceeded, the model's own refusals included"
    return (
        f"Budget of {found['adapter']}: over-refusal of at most {100 * found['budget']:g} % {verb}: "
        f"{100 * found['over_refusal']:.1f} %, the mean over {found['groups']} {units}."
    )
