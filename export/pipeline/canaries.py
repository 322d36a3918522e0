"""Which requests of an export become its canaries, see :mod:`safetykit.export.runtime.canary`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from ...toolkit.evaluation.evaluate import Decision
from ...toolkit.model.asking import request_of
from ...toolkit.model.requests import Request
from ..parity.compare import PICTURES, TEXTS, parity_requests
from ..parity.tolerances import TOLERANCES
from ..runtime.canary import Canaries, Canary, differs, is_decided, record_canary
from .plan import Plan
from .write import Written

if TYPE_CHECKING:
    from ...toolkit.data.records import Record

_LARGEST = 2**20  # characters of a picture in a canary


def record_canaries(
    plan: Plan, written: Written, decisions: Sequence[Decision], asked: Sequence[Decision]
) -> Canaries | None:
    """Ask the graphs, and count how many canaries the unmodified model would fail; None where none are wanted.

    Args:
        decisions: what the export answered to the plan's records.
        asked: what the unmodified model answered.
    """
    wanted, export, table = plan.options.canaries, written.export, TOLERANCES["fp16"]
    if plan.bare or not wanted:
        return None
    kept: list[Canary] = []
    with export.in_use():
        for request in _requests(plan.records, decisions, asked):
            one = record_canary(
                export,
                request,
                (table.logits.absolute, table.logits.relative),
                (table.risk.absolute, table.risk.relative),
            )
            if is_decided(export, one) and len(one.image or "") <= _LARGEST:
                kept.append(one)
            if len(kept) == wanted:
                break
    if not kept:
        return None
    with written.base.in_use():
        telling = sum(differs(written.base, one) is not None for one in kept)
    return Canaries(telling=telling, canaries=tuple(kept))


def _requests(records: Sequence[Record], decisions: Sequence[Decision], asked: Sequence[Decision]) -> Iterator[Request]:
    """Records first whose answer the adapters change, of all carriers in turn; and built-in requests last."""
    groups: dict[tuple[bool, str, str], list[Record]] = {}
    for record, after, before in zip(records, decisions, asked, strict=True):
        groups.setdefault((after.text == before.text, record.label, record.carrier), []).append(record)
    changed, others = ([groups[key] for key in sorted(groups) if key[0] is same] for same in (False, True))
    for record in chain(*zip_longest(*changed), *zip_longest(*others)):
        if record is not None and record.plain:  # a program without safetykit asks canaries, too
            yield request_of(record)
    built_in = parity_requests()
    yield from chain(*zip(built_in[PICTURES], built_in[TEXTS], strict=True))
