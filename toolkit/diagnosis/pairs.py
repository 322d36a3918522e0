"""Malicious and benign requests side by side: which records form a pair, and which tokens correspond.

Both halves of a batch of pairs run in one forward pass, malicious rows first, so that a patch only moves activations
between rows and nothing is stored.

Correspondence: a prompt is cut into runs of text and of image tokens. Runs correspond from the right, since prompts
are padded on the left and end in the same turn markup; text tokens within a run correspond from the right too, image
tokens one to one. A text token without counterpart is never patched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data.records import Record
from ..model.asking import request_of
from ..model.requests import Inputs
from .terms import Modality, Positions

if TYPE_CHECKING:
    from ..model.inputs import InputProcessor
    from ..model.vlm import VLM

POSITIONS: dict[Modality, tuple[Positions, ...]] = {
    "textual": ("all", "last"),
    "visual": ("all", "vision", "text", "last"),
}


@dataclass(frozen=True)
class Pair:
    """Two requests in the same wording and by the same carrier, of which one is harmful."""

    malicious: Record
    benign: Record

    @property
    def modality(self) -> Modality:
        return "visual" if self.malicious.pictured else "textual"


def find_pairs(records: Sequence[Record], split: str = "fit") -> list[Pair]:
    """The pairs of a split, in the order of their harmful records.

    Only unambiguous ones: both records name each other, differ in label, and share carrier and split.
    """
    known = {record.id: record for record in records if record.split == split}
    pairs = []
    for record in known.values():
        other = known.get(record.pair or "")
        if other is None or (record.label, other.label) != ("harmful", "harmless"):
            continue
        if other.pair == record.id and other.carrier == record.carrier:
            pairs.append(Pair(record, other))
    return pairs


def same_pictures(inputs: InputProcessor, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs whose pictures become equally many tokens, so that image tokens correspond one to one."""

    def tokens(record: Record) -> int:
        return int(inputs.prepare([request_of(record)]).vision_mask.sum())

    return [pair for pair in pairs if pair.modality == "textual" or tokens(pair.malicious) == tokens(pair.benign)]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` items, evenly over the sequence and in its order."""
    if len(items) <= count:
        return list(items)
    return [items[at * len(items) // count] for at in range(count)]


@dataclass(frozen=True)
class PairBatch:
    """Pairs ready for a forward pass: rows 0…B−1 are malicious, B…2B−1 benign, in the same order.

    Attributes:
        arguments: keyword arguments of the model's ``forward``.
        source_rows: [rows, 1], the row each row's patch comes from: the pair's other half.
        source_positions: [rows, seq], the token each token's patch comes from.
        masks: which tokens are patched, by kind of position; padding and tokens without counterpart never are.
    """

    pairs: tuple[Pair, ...]
    arguments: dict[str, Any]
    source_rows: Int[Tensor, "rows 1"]
    source_positions: Int[Tensor, "rows seq"]
    masks: dict[Positions, Bool[Tensor, "rows seq"]]

    @classmethod
    def prepare(cls, vlm: VLM, pairs: Sequence[Pair]) -> PairBatch:
        """Tokenise both halves and match their tokens."""
        size = len(pairs)
        halves = [pair.malicious for pair in pairs] + [pair.benign for pair in pairs]
        inputs = vlm.inputs.prepare([request_of(record) for record in halves])
        rows = np.arange(2 * size)
        other = np.roll(rows, size)
        sources = np.stack([_correspondence(inputs, row, other[row]) for row in rows])
        matched, vision = sources >= 0, inputs.vision_mask
        last = np.zeros_like(matched)
        last[:, -1] = True
        masks = {"all": matched, "vision": matched & vision, "text": matched & ~vision, "last": matched & last}
        return cls(
            pairs=tuple(pairs),
            arguments=vlm.arguments(inputs),
            source_rows=torch.from_numpy(other[:, None]).to(vlm.device),
            source_positions=torch.from_numpy(sources.clip(0)).to(vlm.device),
            masks={name: torch.from_numpy(mask).to(vlm.device) for name, mask in masks.items()},
        )

    def counterpart(self, hidden: Tensor) -> Tensor:
        """For each token the activation of its counterpart; [rows, seq, …] like ``hidden``."""
        return hidden[self.source_rows, self.source_positions]


def chunks(pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
    """The pairs by length of prompt, ``size`` at a time, so that little is padded."""
    order = sorted(pairs, key=lambda pair: (pair.modality, pair.malicious.length, pair.malicious.id))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _correspondence(inputs: Inputs, row: int, other: int) -> Int[np.ndarray, " seq"]:
    """For each token of ``row`` the corresponding position in ``other``; −1 for none."""
    found = np.full(inputs.input_ids.shape[1], -1, dtype=np.int64)
    for (vision, mine), (theirs_vision, theirs) in zip(_runs(inputs, row), _runs(inputs, other), strict=False):
        if vision != theirs_vision or (vision and len(mine) != len(theirs)):
            break
        for position, counterpart in zip(mine, theirs, strict=False):
            found[position] = counterpart
    return found


def _runs(inputs: Inputs, row: int) -> list[tuple[bool, list[int]]]:
    """Runs of tokens of one kind from the right, each with its positions from the right."""
    positions = np.flatnonzero(inputs.attention_mask[row])[::-1].tolist()
    return [(bool(vision), list(run)) for vision, run in groupby(positions, key=lambda at: inputs.vision_mask[row, at])]
