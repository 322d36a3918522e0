"""What a fit may ask for, given a VLM: see :class:`safetykit.adapters.protocols.Workbench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from ..adapters.budget import Budget
from ..adapters.errors import UsageError
from ..adapters.protocols import Refusal
from .data.captions import CaptionedPicture
from .data.records import Record
from .evaluation.evaluate import decide
from .evaluation.judge import is_refusal, require_refusal
from .evaluation.refusal import RefusalTokens
from .model.second_pass import SecondPass
from .progress import Progress

if TYPE_CHECKING:
    from ..adapters.artifact.gate import Gate
    from .alignment import Aligner
    from .index.caption_index import CaptionIndex
    from .index.embedding import Embedder
    from .model.vlm import VLM
    from .retrieval.fit import Pictures

_LONGEST = 16  # tokens of an answer that is only judged


class Workbench:
    """A VLM with what its adapter is fitted on.

    Args:
        vlm: with the correctors applied that the adapter will be stacked with.
        records: of the fit and the calibration split.
        captions: captioned pictures, for methods that are fitted on them.
        index: texts to retrieve; ``embedder``: what makes keys of captions that it lacks.
        refusal: what a detector answers; by default the model's own most frequent refusal.
        text_model: a separate language model to take directions from.
        corrected_by: which correctors are applied, as a manifest says it.
        budget: what the fit has to keep on new groups of harmless records.
        gate: opens what the fit does, where a detector's probe is to decide when.
        work: folder for what lets an interrupted fit go on; :meth:`finish` removes it.
        resume: go on from what an interrupted fit left there.
        progress: told how much is done of the present phase.
        say: told each phase as it begins.
    """

    def __init__(
        self,
        vlm: VLM,
        records: Sequence[Record] = (),
        *,
        captions: Sequence[CaptionedPicture] = (),
        index: CaptionIndex | None = None,
        embedder: Embedder | None = None,
        refusal: str | None = None,
        text_model: VLM | None = None,
        corrected_by: Sequence[Mapping[str, JsonValue]] = (),
        budget: Budget | None = None,
        gate: Gate | None = None,
        work: Path | None = None,
        resume: bool = True,
        progress: Progress | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.model, self.records, self.captions = vlm, list(records), list(captions)
        self.corrected_by, self.budget, self.gate = corrected_by, budget, gate
        self._index, self._embedder = index, embedder
        self._refusal, self._text_model = refusal, text_model
        self._work, self._resume, self._progress, self._say = work, resume, progress, say

    def of(self, records: Sequence[Record]) -> Workbench:
        """The same with other records, and nothing yet learnt from any."""
        other = copy(self)
        other.records = list(records)
        for name in ("_outcomes", "_aligner"):
            other.__dict__.pop(name, None)
        return other

    def phase(self, name: str) -> None:
        """Say what is done from now on."""
        if self._say is not None:
            self._say(name)

    def outcomes(self) -> Mapping[str, str]:
        """See :func:`harmful_outcomes`; the model is asked once."""
        return self._outcomes

    @cached_property
    def _outcomes(self) -> dict[str, str]:
        self.phase("asking which attacks succeed")
        return harmful_outcomes(self.model, self.records)

    def second_pass(self) -> SecondPass:
        """Last-position states of normal and second passes."""
        return SecondPass(self.model, progress=self._progress)

    def refuses(self, text: str) -> bool:
        """See :func:`~safetykit.toolkit.evaluation.judge.is_refusal`."""
        return is_refusal(text)

    def refusal(self) -> Refusal:
        """See :func:`refusal_of`."""
        if self._refusal is None:
            self.phase("asking how the model refuses")
        return refusal_of(self.model, self.records, self._refusal)

    def text_model(self) -> VLM | None:
        """The separate language model, if there is one."""
        return self._text_model

    def aligner(self) -> Aligner:
        """The VLM with its captioned pictures; texts come from the index, if there is one."""
        return self._aligner

    @cached_property
    def _aligner(self) -> Aligner:
        from .alignment import Aligner
        from .alignment.neighbours import FromIndex

        retriever = FromIndex(self.model, self._index) if self._index is not None else None
        aligner = Aligner(self.model, self.captions, retriever, work=self._work, progress=self._progress)
        if not self._resume:
            aligner.finish()
        return aligner

    def pictures(self) -> Pictures:
        """The VLM's view of its captioned pictures, with the index.

        Raises:
            UsageError: there is no index.
        """
        from .retrieval.fit import Pictures

        if self._index is None:
            raise UsageError("Retrieval needs an index.", "Make one with `safetykit index build` and name it.")
        return Pictures(self.model, self._index, self.captions, self._embedder, self._progress)


def harmful_outcomes(vlm: VLM, records: Sequence[Record], max_new_tokens: int = _LONGEST) -> dict[str, str]:
    """What the model, as it runs, does with the harmful records of the fit split, by id."""
    harmful = [record for record in records if record.split == "fit" and record.label == "harmful"]
    if not harmful:
        return {}
    decisions = decide(vlm, harmful, max_new_tokens=max_new_tokens, batch_size=64)
    return {item.id: item.outcome for item in decisions if item.outcome}


def refusal_of(vlm: VLM, records: Sequence[Record], text: str | None = None) -> Refusal:
    """``text`` with its first token, or the refusal that the model itself gives most often.

    Raises:
        UsageError: the text is empty, or the model refuses none of the harmful text records.
    """
    if text is None:
        own = RefusalTokens.find(vlm, records)
        return Refusal(own.text, own.first)
    tokens = vlm.inputs.tokenizer(text, add_special_tokens=False)["input_ids"]
    require_refusal(text if tokens else "")
    return Refusal(text, int(tokens[0]))
