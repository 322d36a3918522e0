"""The README of an adapter folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ..ops.branch import Branch
from .intervention import Intervention
from .manifest import AdapterInfo, DetectorInfo
from .updates import WeightUpdate


def _text(said: object) -> str:
    """Text within a line or a cell of a table, in which nothing is a tag."""
    plain = re.sub(r"\s+", " ", str(said)).replace("`", "")
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")


def adapter_card(
    info: AdapterInfo,
    interventions: Sequence[Intervention],
    branch: Branch | None,
    detector: DetectorInfo | None,
    updates: Sequence[WeightUpdate],
) -> str:
    """What an adapter is, for which base, from which data."""
    rows = "\n".join(
        f"| {index} | {', '.join(f'`{_text(site)}`' for site in (*item.reads, item.site))} | "
        f"`{_text(item.op)}` | {item.scope} | {item.phase}"
        f"{f', gate {item.gate}' if item.holds else ''} | "
        + ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(item.tensors.items()))
        + " |"
        for index, item in enumerate(interventions)
    )
    more = ""
    if branch:
        more += (
            f"\n## Branch\n\n`{_text(branch.op)}`: blocks after `{branch.safety}` run again, "
            f"from the states there and at `{branch.fused}`.\n"
        )
    if detector:
        more += f"\n## Detector\n\nRefuses when the risk (log-odds) exceeds {detector.threshold:.6g}.\n"
    if updates:
        lines = "\n".join(
            f"| `{_text(update.parameter)}` | "
            + ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(update.tensors.items()))
            + " |"
            for update in updates
        )
        more += f"\n## Weights that change\n\n| weight | tensors |\n|---|---|\n{lines}\n"
    hyper = "\n".join(
        f"| {_text(name)} | {_text(json.dumps(value))} |" for name, value in sorted(info.hyperparameters.items())
    )
    counts = "\n".join(f"| {_text(name)} | {count} |" for name, count in sorted(info.data.counts.items()))
    return (
        f"# {_text(info.method)} ({_text(info.variant)}) safety adapter\n\n"
        f"For the base model `{info.base.fingerprint}` ({_text(info.base.architecture)}, {info.base.n_layers} layers, "
        f"width {info.base.d_model}). Loading it on another model is refused.\n\n"
        f"Sign convention: {_text(info.sign_convention)}\n\n"
        f"## Interventions\n\n| # | site | op | scope | phase | tensors |\n|---|---|---|---|---|---|\n{rows}\n{more}\n"
        f"## Hyperparameters\n\n| name | value |\n|---|---|\n{hyper}\n\n"
        f"## Fitted on\n\nRecords with SHA-256 `{info.data.sha256}`.\n\n| records | count |\n|---|---|\n{counts}\n"
    )
