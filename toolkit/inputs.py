"""From requests to model inputs: one path for PyTorch and ONNX Runtime, so both see the same numbers.

Works on NumPy arrays and does not use torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from PIL import Image

from ..adapters.errors import InvalidArtifact, UsageError

RETRIEVED = "Retrieved Text: "  # TGA's prefix


@dataclass(frozen=True)
class Request:
    """What one user sends.

    Attributes:
        answer: how the model's answer begins, for states of a given answer; normally empty.
        retrieved: texts that stand before the prompt, as retrieved for the picture; None before retrieval.
    """

    prompt: str
    image: Image.Image | None = None
    answer: str = ""
    retrieved: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Generation:
    """What the model returned for one request.

    Attributes:
        text: decoded, without special tokens.
        token_ids: generated tokens, end-of-sequence excluded.
        scores: per-request outputs of the adapters' ops at prefill, such as gate margins; a detector's ``risk`` is
            its log-odds of harm less its threshold.
        refused: whether the detector refused before anything was generated; the text is then its fixed answer.
    """

    text: str
    token_ids: tuple[int, ...]
    scores: dict[str, float] = field(default_factory=dict)
    refused: bool = False


@dataclass(frozen=True)
class Inputs:
    """A batch ready for the model; rows are padded on the left.

    Attributes:
        pixel_values: one entry per picture, in row order; None when no row has one.
    """

    input_ids: Int[np.ndarray, "batch seq"]
    attention_mask: Int[np.ndarray, "batch seq"]
    vision_mask: Bool[np.ndarray, "batch seq"]
    pixel_values: Float[np.ndarray, "pictures channels height width"] | None

    @property
    def position_ids(self) -> Int[np.ndarray, "batch seq"]:
        """Position of each token among the unpadded ones of its row."""
        return np.maximum(np.cumsum(self.attention_mask, axis=1) - 1, 0)


class InputProcessor:
    """A checkpoint's processor, tokenizer and chat template behind one method."""

    def __init__(self, processor: Any, image_token_id: int, eos_token_ids: Sequence[int]) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"
        self.image_token_id = image_token_id
        self.eos_token_ids = tuple(eos_token_ids)
        pad = self.tokenizer.pad_token_id
        self.pad_token_id: int = self.eos_token_ids[0] if pad is None else pad

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> InputProcessor:
        """Read a checkpoint or export folder; nothing is downloaded.

        Raises:
            UsageError: the folder has no processor for pictures and text.
        """
        from transformers import AutoConfig, AutoProcessor, GenerationConfig

        folder = Path(folder)
        if not folder.is_dir():
            raise UsageError(f"There is no model folder at {folder}.", "Pass the path of a checkpoint on disk.")
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            processor = AutoProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(
                f"{folder} cannot be read as a vision-language checkpoint: {reason}",
                "It needs config.json, a tokenizer and a processor in the files that transformers reads.",
            ) from None
        image_token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
        if image_token is None or not hasattr(processor, "tokenizer"):
            raise UsageError(
                f"{folder} ({config.model_type}) has no image token or no processor for text and pictures.",
                "safetykit works on vision-language models whose pictures become tokens of the decoder.",
            )
        eos: Any = None
        if (folder / "generation_config.json").is_file():
            eos = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        if eos is None:
            eos = processor.tokenizer.eos_token_id
        return cls(processor, image_token, [eos] if isinstance(eos, int) else list(eos))

    def render(self, request: Request) -> str:
        """The request in the model's chat template, up to where the answer begins or as far as it is given."""
        text = request.prompt
        if request.retrieved:
            text = f"{RETRIEVED}{' '.join(request.retrieved)}\n{text}"
        content = [{"type": "text", "text": text}]
        if request.image is not None:
            content.insert(0, {"type": "image"})
        prompt = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return f"{prompt.rstrip()} {request.answer}" if request.answer else prompt

    def prepare(self, requests: Sequence[Request]) -> Inputs:
        """Tokenise, insert picture placeholders, pad on the left.

        Raises:
            UsageError: the batch is empty.
        """
        if not requests:
            raise UsageError("There is nothing to run: the batch is empty.", "Pass at least one request.")
        images = [request.image for request in requests if request.image is not None]
        batch = self.processor(
            text=[self.render(request) for request in requests],
            images=images or None,
            padding=True,
            return_tensors="np",
        )
        input_ids = np.asarray(batch["input_ids"], dtype=np.int64)
        return Inputs(
            input_ids=input_ids,
            attention_mask=np.asarray(batch["attention_mask"], dtype=np.int64),
            vision_mask=input_ids == self.image_token_id,
            pixel_values=np.asarray(batch["pixel_values"], dtype=np.float32) if images else None,
        )

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of generated tokens, without special tokens."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()

    def generation(self, token_ids: Sequence[int], scores: dict[str, float], refusal: str | None = None) -> Generation:
        """What one row returned; with ``refusal``, the fixed answer of a detector whose ``risk`` is positive.

        Raises:
            InvalidArtifact: the risk is no number, so that nobody knows whether to answer.
        """
        if refusal is not None and math.isnan(scores["risk"]):
            raise InvalidArtifact(
                "The detector's risk of a request is not a number, so it is not answered.",
                "States have overflowed; use --precision fp32, or fit the detector for this precision.",
            )
        if refusal is not None and scores["risk"] > 0:
            tokens = self.tokenizer(refusal, add_special_tokens=False)["input_ids"]
            return Generation(refusal, tuple(tokens), scores, refused=True)
        return Generation(self.decode(token_ids), tuple(token_ids), scores)


# Tokenizers warn about threads on every fork; the setting only silences that.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
