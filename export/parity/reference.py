"""What PyTorch gives that an export is compared with: in which type it computes, and the recording of all its runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...adapters.artifact.adapter import Adapter
from ...toolkit.model.options import AUTO, PlaceOptions
from ...toolkit.model.requests import Request
from ..base.fitted_on import require_graph_weights, weights_of
from ..runtime.onnx_vlm import OnnxVLM
from .compare import cached_steps, parity_requests
from .held import ComparedWeights
from .recording import Recorded, Scores, Store, record, record_scores
from .report import Reference
from .tolerances import TOLERANCES

if TYPE_CHECKING:
    from ...toolkit.data.records import Record
    from ...toolkit.evaluation.evaluate import Decision
    from ...toolkit.model.hooks import AppliedAdapters
    from ...toolkit.model.vlm import VLM


def computing_wide(vlm: VLM, options: PlaceOptions) -> AbstractContextManager[None]:
    """Have ``vlm`` compute in float32 from its own weights, unless another type was asked for or they are wider.

    A graph holds the weights of the checkpoint and computes in its own precision, so that it is compared with the
    function that those weights are, not with PyTorch's rounding to the checkpoint's type.
    """
    stored = getattr(torch, vlm.stored_dtype if options.dtype == AUTO else options.dtype)
    return vlm.computing(torch.promote_types(stored, torch.float32) if options.dtype == AUTO else stored)


@dataclass(frozen=True)
class Against:
    """What an export is compared with beside the model and its adapters, and how far.

    Attributes:
        unfolded: the adapters as they were before they were folded into weights; they must give the same logits.
        base: the export without adapters, to check that "adapter off" is the bare model; for a base export the
            export itself.
        records: prompts and pictures are taken from here; without any, built-in ones are used.
        decisions: what PyTorch and ONNX Runtime answered to ``records``, in that order.
        unmodified: the same without adapters, where weights are rounded: records that flip here are not the adapters'.
        rows: how many prompts are compared in all; None for the usual ones.
        steps: cached decoding steps that are compared.
        max_new_tokens: with which ``decisions`` were made.
        max_flips: share of ``decisions`` that may flip; by default what the precision's table says.
        allow_wrong_base: the adapters may have been fitted on another model.
    """

    unfolded: Sequence[Adapter] = ()
    base: OnnxVLM | None = None
    records: Sequence[Record] = ()
    decisions: tuple[Sequence[Decision], Sequence[Decision]] | None = None
    unmodified: tuple[Sequence[Decision], Sequence[Decision]] | None = None
    rows: int | None = None
    steps: int = field(default_factory=cached_steps)
    max_new_tokens: int = 32
    max_flips: float | None = None
    allow_wrong_base: bool = False


@dataclass(frozen=True)
class Recording:
    """All that PyTorch is asked for in a comparison, each by the case of its requests.

    Attributes:
        requests: the batches.
        ran: how PyTorch computed.
        weights: with which.
        adapted: with the adapters.
        unfolded: with the adapters as they were before they were folded; empty where none were.
        bare: without them; empty where there is no base to compare with.
        drifting: without them and with the checkpoint's own weights, where the graph's are rounded.
        drifting_risks: scores under a detector, where nothing else can be compared.
    """

    requests: Mapping[str, Sequence[Request]]
    ran: Reference
    weights: ComparedWeights
    adapted: Mapping[str, Recorded]
    unfolded: Mapping[str, Recorded]
    bare: Mapping[str, Recorded]
    drifting: Mapping[str, Recorded]
    drifting_risks: Mapping[str, Scores]


def record_reference(
    vlm: VLM,
    onnx_vlm: OnnxVLM,
    adapters: Sequence[Adapter],
    against: Against,
    folder: Path,
    progress: Callable[[str], None] | None = None,
) -> Recording:
    """Run PyTorch on everything that the export is to be compared on. No session is opened.

    Args:
        vlm: with its weights.
        onnx_vlm: whose files are read.
        folder: for logits; it must stay for as long as the recording is used.
        progress: called with the name of each step as it starts.

    Raises:
        WrongBase: an adapter was fitted on other rounded weights than the export's.
    """
    fitted = [adapter.info for adapter in adapters]
    if not against.allow_wrong_base:
        require_graph_weights(fitted, onnx_vlm.manifest, str(onnx_vlm.path))
    say, store, manifest, base = progress or (lambda _: None), Store(folder), onnx_vlm.manifest, against.base
    several = vlm.inputs.family.several and manifest.retrieval is None
    requests = parity_requests(against.records, _opened(against), several=several, rows=against.rows)
    weights, on = ComparedWeights.of(vlm, onnx_vlm), weights_of(fitted)

    def applied(some: Sequence[Adapter]) -> AbstractContextManager[AppliedAdapters]:
        return vlm.applied(*some, allow_wrong_base=against.allow_wrong_base, enforce=manifest.enforce)

    def run(called: str, some: Sequence[Adapter] | None, wanted: bool) -> dict[str, Recorded]:
        found = {}
        for case, batch in requests.items() if wanted else ():
            say(f"{called}: {case}")
            if some is None:
                found[case] = record(vlm, batch, against.steps, store=store)
                continue
            with applied(some) as hooks:
                found[case] = record(vlm, batch, against.steps, hooks, store)
        return found

    with weights.standing(vlm, on):
        adapted = run("PyTorch", adapters, weights.exact and base is not onnx_vlm)
        unfolded = run("PyTorch, not folded", against.unfolded, weights.exact and bool(against.unfolded))
        bare = run("PyTorch, adapter off", None, weights.exact and base is not None)
    rounds = TOLERANCES[manifest.precision].drift is not None
    drifting = run("PyTorch, with the checkpoint's weights", None, rounds and base is not None)
    risks: dict[str, Scores] = {}
    if rounds and not weights.exact and onnx_vlm.detector is not None:
        with weights.standing(vlm, on), applied(adapters) as hooks:
            risks = {case: record_scores(vlm, batch, hooks) for case, batch in requests.items()}
    return Recording(requests, _ran(vlm), weights, adapted, unfolded, bare, drifting, risks)


def _opened(against: Against) -> set[str]:
    decided = against.decisions[0] if against.decisions else ()
    return {item.id for item in decided if max(item.scores.values(), default=-1.0) > 0}


def _ran(vlm: VLM) -> Reference:
    ran = vlm.ran
    assert ran is not None  # it has its weights
    return Reference(device=ran.device, dtype=ran.dtype, weights=vlm.stored_dtype)
