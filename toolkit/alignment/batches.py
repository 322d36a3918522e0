"""Training batches: a picture's request beside its text twin, both padded on the left so that their ends line up.

The twin is the same turn with the caption where the picture stood. Tokens that both share at their end are the
request (and the answer); what lies before is the picture in the one and the caption in the other. Found by comparing
token ids, so it holds for any chat template.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ...adapters.errors import UsageError
from ..data.captions import CaptionedPicture
from ..model.inputs import InputProcessor
from ..model.requests import RETRIEVED, Inputs, Request


@dataclass(frozen=True)
class Draw:
    """One row before it is tokenised.

    Attributes:
        item: index of the captioned picture.
        instruction: what is asked about it.
        answer: what is to be answered; empty if nothing is (the instruction was drawn from another picture).
        retrieved: text that stands before the instruction; empty for none.
    """

    item: int
    instruction: str
    answer: str = ""
    retrieved: str = ""


@dataclass(frozen=True)
class TwinBatch:
    """Tokenised rows.

    Attributes:
        items: indices of the captioned pictures.
        pictured, twin: the turn with the picture, and with its caption.
        answer: positions of ``pictured`` that hold the answer and the end of sequence.
        request: positions from the end, of both, that hold the request: aligned token by token.
    """

    items: tuple[int, ...]
    pictured: Inputs
    twin: Inputs
    answer: Bool[Tensor, "batch seq"]
    request: Bool[Tensor, "batch tail"]


class Batches:
    """Draws rows and tokenises them. What is drawn depends on seed and step alone, so a run can be resumed anywhere.

    Args:
        shuffled: share of rows whose instruction comes from another picture.
        prefixed: share of rows with retrieved text.
        retrieved: per captioned picture, the text retrieved for it.

    Raises:
        UsageError: no captioned picture has a turn.
    """

    def __init__(
        self,
        inputs: InputProcessor,
        captions: Sequence[CaptionedPicture],
        retrieved: Sequence[str],
        *,
        size: int,
        seed: int,
        shuffled: float,
        prefixed: float,
    ) -> None:
        self._inputs, self._captions, self._retrieved = inputs, captions, retrieved
        self._turns = [(at, turn) for at, item in enumerate(captions) for turn in item.turns]
        if not self._turns:
            raise UsageError(
                "No captioned picture has a turn.", "Give some of them turns of instruction and answer to train with."
            )
        self._size, self._seed, self._shuffled, self._prefixed = size, seed, shuffled, prefixed

    def __call__(self, step: int) -> TwinBatch:
        """The batch of one step."""
        return self.encode(self.draw(step))

    def draw(self, step: int) -> list[Draw]:
        """Rows of one step; pictures do not repeat before all turns are used up."""
        rng = random.Random(f"{self._seed} {step}")
        chosen = rng.sample(self._turns, min(self._size, len(self._turns)))
        rows = []
        for at, turn in chosen:
            instruction, answer = turn.instruction, turn.answer
            if rng.random() < self._shuffled:
                instruction, answer = rng.choice(self._turns)[1].instruction, ""
            prefixed = rng.random() < self._prefixed
            rows.append(Draw(at, instruction, answer, self._retrieved[at] if prefixed else ""))
        return rows

    def encode(self, rows: Sequence[Draw]) -> TwinBatch:
        """Tokenise rows and find the answers and the requests in them."""
        pictured, twin, answers = [], [], []
        for row in rows:
            item = self._captions[row.item]
            answer, ended = row.answer, bool(row.answer)
            retrieved = (row.retrieved,) if row.retrieved else None
            pictured.append(Request(row.instruction, item.picture(), answer, retrieved, ended=ended))
            # After the caption, as it stands after the picture.
            prefix = f"{RETRIEVED}{row.retrieved}\n" if row.retrieved else ""
            twin.append(Request(f"{item.caption} {prefix}{row.instruction}", None, answer, ended=ended))
            answers.append(self._answer_length(twin[-1]))
        with_picture, with_caption = self._inputs.prepare(pictured), self._inputs.prepare(twin)
        length = torch.tensor(answers)
        return TwinBatch(
            tuple(row.item for row in rows),
            with_picture,
            with_caption,
            _ends(length, with_picture.input_ids.shape[1]),
            _request(with_picture, with_caption, length),
        )

    def _answer_length(self, request: Request) -> int:
        if not request.answer:
            return 0
        asked = Request(request.prompt, request.image)
        return len(self._inputs.rendered_ids(request)) - len(self._inputs.rendered_ids(asked))


def caption_mask(inputs: InputProcessor, captions: Sequence[str]) -> tuple[Inputs, Bool[Tensor, "batch seq"]]:
    """Captions as turns of their own, and the positions that hold their words.

    What the turn's markup is, is seen by comparing with an empty turn: its tokens at the start and at the end.
    """
    made = inputs.prepare([Request(caption) for caption in captions])
    empty = inputs.prepare([Request("")]).input_ids[0].tolist()
    mask = torch.zeros(made.input_ids.shape, dtype=torch.bool)
    for row, (ids, real) in enumerate(zip(made.input_ids, made.attention_mask, strict=True)):
        tokens = ids[real.astype(bool)].tolist()
        start = _common(tokens, empty)
        stop = len(tokens) - min(_common(tokens[::-1], empty[::-1]), len(empty) - start)
        if start >= stop:
            raise UsageError(f"The caption {captions[row]!r} has no token of its own.", "Give every caption words.")
        offset = len(ids) - len(tokens)
        mask[row, offset + start : offset + stop] = True
    return made, mask


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _ends(length: Int[Tensor, " batch"], width: int) -> Bool[Tensor, "batch seq"]:
    """The last ``length`` positions of each row."""
    return torch.arange(width)[None] >= width - length[:, None]


def _request(pictured: Inputs, twin: Inputs, answers: Int[Tensor, " batch"]) -> Bool[Tensor, "batch tail"]:
    """Positions before the answer that both rows share, counted from the end, without padding and pictures."""
    width = min(pictured.input_ids.shape[1], twin.input_ids.shape[1])
    mine, other = (torch.from_numpy(side.input_ids[:, -width:]) for side in (pictured, twin))
    real = torch.from_numpy(pictured.attention_mask[:, -width:] * twin.attention_mask[:, -width:]).bool()
    same = (mine == other) & real & ~torch.from_numpy(pictured.vision_mask[:, -width:])
    # From the end backwards, up to the first difference.
    shared = same.flip(1).int().cumprod(1).flip(1).bool()
    return shared & ~_ends(answers, width)
