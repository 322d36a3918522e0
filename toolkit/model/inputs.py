"""From requests to model inputs: one path for PyTorch and ONNX Runtime, so both see the same numbers.

Works on NumPy arrays and does not use torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...adapters.errors import InvalidArtifact, UsageError
from ..data.sources import model_path
from ..families import family_or_any
from .requests import Generation, Inputs, Request

_OTHER_BACKEND = "TorchvisionBackend"
_PER_TOKEN = "token_type_ids"  # how the processors' outputs about tokens are called; the others are about pictures


class InputProcessor:
    """A checkpoint's processor, tokenizer and chat template behind one method.

    Attributes:
        config: of the model.
        family: what is special about its inputs.
    """

    def __init__(self, processor: Any, config: Any, eos_token_ids: int | Sequence[int] | None = None) -> None:
        """Use a loaded processor; its tokenizer pads on the left from now on.

        Args:
            processor: of transformers, for pictures and text.
            config: the model's.
            eos_token_ids: what ends an answer; by default the tokenizer's end of sequence.

        Raises:
            UsageError: this is no processor for pictures and text, or it does not prepare pictures by Pillow.
        """
        image_token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        if image_token is None or not hasattr(processor, "tokenizer"):
            raise UsageError(
                f"The model ({config.model_type}) has no image token or no processor for text and pictures.",
                "safetykit works on vision-language models whose pictures become tokens of the decoder.",
            )
        if any(base.__name__ == _OTHER_BACKEND for base in type(getattr(processor, "image_processor", None)).__mro__):
            raise UsageError(
                f"{type(processor.image_processor).__name__} prepares pictures by torchvision, exports by Pillow: "
                "they would see other pixels.",
                'Load the processor with AutoProcessor.from_pretrained(..., backend="pil").',
            )
        self.processor = processor
        self.config, self.family = config, family_or_any(config)
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.image_token_id: int = image_token
        ends = self.tokenizer.eos_token_id if eos_token_ids is None else eos_token_ids
        self.eos_token_ids = (ends,) if isinstance(ends, int) else tuple(ends)
        pad = self.tokenizer.pad_token_id
        self.pad_token_id: int = self.eos_token_ids[0] if pad is None else pad

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> InputProcessor:
        """Read a checkpoint or export folder, or ``reference:mild``; nothing is downloaded.

        Raises:
            UsageError: the folder has no processor for pictures and text.
            InvalidArtifact: it asks to run code, or is not what its manifest says.
        """
        from .pretrained import config_of, generation_config_of, readable_copy
        from .processors import load_processor

        folder = model_path(folder)
        try:
            config, generation = config_of(folder), generation_config_of(folder)
            with readable_copy(folder) as copy:
                processor = load_processor(copy, config)
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(
                f"{folder} cannot be read as a vision-language checkpoint: {reason}",
                "It needs config.json, a tokenizer and a processor in the files that transformers reads.",
            ) from None
        return cls(processor, config, None if generation is None else generation.eos_token_id)

    def render(self, request: Request) -> str:
        """The request in the model's chat template, up to where the answer begins or as far as it is given."""
        return self.family.joined(self._prompt(request), request.answer)

    def _prompt(self, request: Request) -> str:
        turns = request.messages()
        prompt = self.family.render(self.processor, turns)
        # Templates that know no system turn, or one turn only, drop the others silently.
        if request.system.strip() not in prompt:
            raise UsageError(
                "This model's chat template has no place for a system turn.", "Put the text before the prompt instead."
            )
        if lost := next((turn for turn in request.turns if turn.text.strip() not in prompt), None):
            raise UsageError(
                f"This model's chat template drops what the {lost.role} said before: {lost.text[:60]!r}.",
                "Ask with a single prompt.",
            )
        return prompt

    def prepare(self, requests: Sequence[Request]) -> Inputs:
        """Tokenise, insert picture placeholders, pad on the left.

        Raises:
            UsageError: the batch is empty, or the processor cannot take a picture, such as a very narrow one.
        """
        if not requests:
            raise UsageError("There is nothing to run: the batch is empty.", "Pass at least one request.")
        if not self.family.several and any(len(request.pictures) > 1 for request in requests):
            raise UsageError("This model takes one picture a prompt.", "Ask about one picture at a time.")
        prompts = [self._prompt(request) for request in requests]
        try:
            batch = self.family.tokenised(
                self.processor,
                prompts,
                [request.answer for request in requests],
                [request.pictures for request in requests],
            )
        except ValueError as error:
            raise UsageError(
                f"The model's processor refuses these requests: {str(error).strip().rstrip('.')}.",
                "Pass pictures of another size or shape.",
            ) from None
        found = {name: _plain(value) for name, value in batch.items()}
        input_ids, attention_mask = found.pop("input_ids"), found.pop("attention_mask")
        tokens = {name: found.pop(name) for name in list(found) if name.endswith(_PER_TOKEN)}
        return Inputs(input_ids, attention_mask, input_ids == self.image_token_id, found, tokens)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, without special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Token ids of a text that stands alone, without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def generation(self, token_ids: Sequence[int], scores: dict[str, float], refusal: str | None = None) -> Generation:
        """The generation of one row; with ``refusal``, the fixed answer of a detector whose ``risk`` is positive.

        Raises:
            InvalidArtifact: the risk is no number, so that nobody knows whether to answer.
        """
        if refusal is not None and math.isnan(scores["risk"]):
            raise InvalidArtifact(
                "The detector's risk of a request is not a number, so it is not answered.",
                "States have overflowed; use --precision fp32, or fit the detector for this precision.",
            )
        if refusal is not None and scores["risk"] > 0:
            return Generation(refusal, self.tokens_of(refusal), scores, refused=True)
        return Generation(self.decode(token_ids), tuple(token_ids), scores)


def _plain(value: Any) -> np.ndarray:
    """Floats in single precision, integers in 64 bits, truth values as they are."""
    array = np.asarray(value)
    return array if array.dtype == bool else array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


# Tokenizers warn about threads on every fork; the setting only silences that.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
