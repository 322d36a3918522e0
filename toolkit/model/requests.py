"""Requests, prepared batches and answers: what goes into a model and what comes out, without torch or a processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from ...adapters.errors import UsageError
from ..data.pictures import Picture, as_picture

Role = Literal["system", "user", "assistant"]

RETRIEVED = "Retrieved Text: "  # TGA's prefix
FORMS = 'Pass a string, a Request or chat messages such as [{"role": "user", "content": "…"}], or a list of these.'


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        content: its texts and pictures, in their order.
    """

    role: Role
    content: tuple[str | Image.Image, ...]

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """Its pictures."""
        return tuple(part for part in self.content if not isinstance(part, str))


@dataclass(frozen=True, repr=False)
class Request:
    """What one user sends.

    Attributes:
        image: the picture, or several, in any form that :func:`~safetykit.toolkit.data.pictures.as_picture` takes;
            they stand before the prompt. Kept as images of Pillow.
        answer: how the model's answer begins, for states of a given answer; normally empty.
        ended: the token that ends an answer follows it.
        retrieved: texts that stand before the prompt, as retrieved for the picture; None before retrieval.
        system: what the operator says first; empty leaves the turn to the chat template.
        turns: the whole conversation after the system turn, where it is more than pictures and a prompt; see
            :mod:`.chat`. ``prompt`` is then the text of its last turn, ``image`` all its pictures.

    Raises:
        UsageError: a picture is none or cannot be read, or ``turns`` end in another prompt.
    """

    prompt: str
    image: Picture | Sequence[Picture] | None = None
    answer: str = ""
    retrieved: tuple[str, ...] | None = None
    system: str = ""
    turns: tuple[Turn, ...] = ()
    ended: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise UsageError(f"A prompt is text, not a {type(self.prompt).__name__}.", FORMS)
        image: Any = self.image
        if isinstance(image, (list, tuple)):
            image = tuple(as_picture(one) for one in image) or None
        elif image is not None:
            image = as_picture(image)
        object.__setattr__(self, "image", image)
        if self.turns:
            shown = tuple(picture for turn in self.turns for picture in turn.pictures)
            if self.turns[-1].text != self.prompt or shown != self.pictures:
                raise UsageError("A request's turns do not end in its prompt, or show other pictures.", FORMS)

    def __repr__(self) -> str:
        """The prompt and what else is given; pictures by their sizes."""
        said = [repr(self.prompt)]
        if self.pictures:
            said.append(f"image={' + '.join(f'{one.width}x{one.height}' for one in self.pictures)}")
        said += [f"{name}={value!r}" for name in ("answer", "retrieved", "system") if (value := getattr(self, name))]
        if self.turns:
            said.append(f"turns={len(self.turns)}")
        return f"Request({', '.join(said)})"

    @property
    def pictures(self) -> tuple[Image.Image, ...]:
        """The pictures; none, one or several."""
        if self.image is None:
            return ()
        return self.image if isinstance(self.image, tuple) else (self.image,)  # type: ignore[return-value]

    @property
    def said(self) -> str:
        """All its texts, one after the other."""
        turns = [turn.text for turn in self.turns] or [self.prompt]
        return "".join((self.system, *(self.retrieved or ()), *turns, self.answer))

    def without_pictures(self) -> Request:
        """The same query as text only."""
        turns = tuple(Turn(turn.role, (turn.text,)) for turn in self.turns)
        return Request(self.prompt, system=self.system, turns=turns)

    def messages(self) -> list[dict[str, Any]]:
        """The conversation as chat templates take it, pictures as placeholders, up to where the answer begins."""
        turns = self.turns or (Turn("user", (*self.pictures, self.prompt)),)
        said = [_message(turn) for turn in turns]
        if self.retrieved:
            parts = said[-1]["content"]
            first = next((part for part in parts if part["type"] == "text"), None)
            if first is None:
                parts.append(first := {"type": "text", "text": ""})
            first["text"] = f"{RETRIEVED}{' '.join(self.retrieved)}\n{first['text']}"
        return [_message(Turn("system", (self.system,))), *said] if self.system else said


@dataclass(frozen=True, repr=False)
class Generation:
    """What the model returned for one request.

    Attributes:
        text: decoded, without special tokens.
        token_ids: generated tokens, end-of-sequence excluded.
        scores: per-request outputs of the adapters' ops at prefill, such as gate margins; a detector's ``risk`` is
            its log-odds of harm less its threshold.
        refused: whether the detector refused before anything was generated; the text is then its fixed answer.
        calls: how often a model was asked for it; a defence may ask several times.
        dropped_turns: how many of the oldest turns of a conversation the model did not see, see :mod:`.shortening`.
    """

    text: str
    token_ids: tuple[int, ...]
    scores: dict[str, float] = field(default_factory=dict)
    refused: bool = False
    calls: int = 1
    dropped_turns: int = 0

    def __repr__(self) -> str:
        """The text, how many tokens it has, the scores, and whether the detector refused."""
        scores = "".join(f", {name}={value:.3g}" for name, value in self.scores.items())
        return f"Generation({self.text!r}, {len(self.token_ids)} tokens{scores}{', refused' if self.refused else ''})"


@dataclass(frozen=True)
class Inputs:
    """A batch ready for the model; rows are padded on the left.

    Attributes:
        pictures: what the processor made of the pictures, by its names; empty when no row has one.
        tokens: what else it said about each token [batch, seq], such as its type.
    """

    input_ids: Int[np.ndarray, "batch seq"]
    attention_mask: Int[np.ndarray, "batch seq"]
    vision_mask: Bool[np.ndarray, "batch seq"]
    pictures: Mapping[str, np.ndarray] = field(default_factory=dict)
    tokens: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def pixel_values(self) -> Float[np.ndarray, "..."] | None:
        """Pixels in row order, their axes as the family has them; None when no row has a picture."""
        return self.pictures.get("pixel_values")

    @property
    def position_ids(self) -> Int[np.ndarray, "batch seq"]:
        """Position of each token among the unpadded ones of its row."""
        return np.maximum(np.cumsum(self.attention_mask, axis=1) - 1, 0)


def _message(turn: Turn) -> dict[str, Any]:
    return {
        "role": turn.role,
        "content": [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in turn.content
        ],
    }
