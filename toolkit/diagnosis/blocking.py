"""Window blocking: what the released code of CARE does to find its layers.

Two neighbouring decoder blocks {l, l+1} are skipped (their output is their input), harmful requests are answered
again, and attacks are counted. The sources disagree whether blocking the critical layers raises or lowers attack
success, so the change of attacks and of refusals is reported with its sign. A window that destroys the model lowers
both: neither an attack nor a refusal comes out of gibberish.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..data.records import Record
from ..evaluation.evaluate import Rate, decide
from ..evaluation.judge import Outcome
from .intervals import estimate_mean
from .patching import skipped
from .terms import Window

if TYPE_CHECKING:
    from ..model.vlm import VLM

WIDTH = 2


def windows(depth: int) -> list[tuple[int, ...]]:
    """No layer, then every run of :data:`WIDTH` layers."""
    width = min(WIDTH, depth)
    return [(), *(tuple(range(start, start + width)) for start in range(depth - width + 1))]


def answer_without(
    vlm: VLM, records: Sequence[Record], layers: Sequence[int], max_new_tokens: int, batch_size: int
) -> list[Outcome | None]:
    """What the records' answers amount to when ``layers`` are skipped."""
    with skipped(vlm, layers):
        decisions = decide(vlm, records, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [decision.outcome for decision in decisions]


def compare(outcomes: dict[tuple[int, ...], list[Outcome | None]], seed: int) -> tuple[Window, ...]:
    """Count every window against the whole model, whose key is ``()``."""
    whole = outcomes[()]
    rows = []
    for layers, found in outcomes.items():
        changes = {
            kind: estimate_mean([(now == kind) - (was == kind) for now, was in zip(found, whole, strict=True)], seed)
            for kind in ("answered", "refused")
        }
        rows.append(
            Window(
                layers=layers,
                attack_success=Rate.of(found.count("answered"), len(found)),
                refused=Rate.of(found.count("refused"), len(found)),
                attack_success_change=changes["answered"],
                refused_change=changes["refused"],
            )
        )
    return tuple(rows)
