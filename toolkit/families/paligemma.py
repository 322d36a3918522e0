"""PaliGemma and PaliGemma 2: ``PaliGemmaForConditionalGeneration``.

Parts and weight prefixes:
    ``model.vision_tower``            SigLIP
    ``model.multi_modal_projector``   one linear layer
    ``model.language_model``          Gemma, or Gemma 2 (norms after attention and MLP too, windows, soft caps)
    ``lm_head``                       tied to the embedding, which scales its rows

A prompt is a prefix whose tokens, pictures and text, see each other in both directions; the answer sees the past. The
model builds that mask outside its decoder; here the graph builds it from ``token_type_ids`` (0 in the prefix, 1 in the
answer). A prefix has to come in one call. Positions count from 1.

The model has no chat: a prompt is its pictures, the begin token, the text and a line break. Its processor refuses rows
without a picture and puts the line break behind an answer that is given; so rows are put together here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .family import Arrays
from .masks import GroupedFamily, decoded
from .registry import register
from .windows import require_known_layers

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.requests import Inputs

_TYPES = "token_type_ids"


@register
class PaliGemma(GroupedFamily):
    """A prefix that is seen in both directions."""

    name, title = "paligemma", "PaliGemma"
    relatives: ClassVar[Mapping[str, str]] = {"paligemma2": "PaliGemma 2"}
    runs_in: ClassVar[Mapping[str, Any]] = {"genai": "gemma3"}
    token_types = "phases"
    first_position = 1

    def render(self, processor: Any, turns: Sequence[Mapping[str, Any]]) -> str:
        parts = [part for turn in turns if turn["role"] == "user" for part in turn["content"]]
        pictures = sum(part["type"] == "image" for part in parts)
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        image = processor.image_token * processor.image_seq_length
        return f"{image * pictures}{processor.tokenizer.bos_token}{text}\n"

    def picture_text(self, processor: Any) -> tuple[str, str, str, str]:
        token = processor.image_token
        return token * processor.image_seq_length, "", token, ""

    def joined(self, prompt: str, answer: str) -> str:
        return prompt + answer

    def tokenised(
        self, processor: Any, prompts: Sequence[str], answers: Sequence[str], pictures: Sequence[Sequence[Any]]
    ) -> Mapping[str, Any]:
        tokenizer = processor.tokenizer
        prefixes, suffixes = (
            tokenizer(list(texts), add_special_tokens=False)["input_ids"] for texts in (prompts, answers)
        )
        rows = [prefix + suffix for prefix, suffix in zip(prefixes, suffixes, strict=True)]
        width = max(map(len, rows))
        from_end = np.arange(width, 0, -1)
        found = {
            "input_ids": np.array([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows]),
            "attention_mask": (from_end <= np.array([[len(row)] for row in rows])).astype(np.int64),
            _TYPES: (from_end <= np.array([[len(suffix)] for suffix in suffixes])).astype(np.int64),
        }
        images = self.images(pictures)
        return found | (dict(processor.image_processor(images, return_tensors="np")) if images else {})

    def check(self, config: Any) -> None:
        require_known_layers(config.get_text_config())

    def decoder(
        self,
        model: Any,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        cache: Any,
        position_ids: Tensor,
        token_type_ids: Tensor,
    ) -> Tensor:
        """A window does not bound what the prefix sees of itself."""
        import torch

        prefix = torch.where(token_type_ids == 0, 0, -1)
        states = decoded(model, inputs_embeds, attention_mask, cache, position_ids, prefix, window_bounds_groups=False)
        logits, cap = model.lm_head(states), getattr(model.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def prefill(self, config: Any, inputs: Inputs) -> Arrays:
        return super().prefill(config, inputs) | {_TYPES: inputs.tokens[_TYPES]}

    def step(self, config: Any, before: Mapping[str, np.ndarray], mask: np.ndarray) -> Arrays:
        found = super().step(config, before, mask)
        return found | {_TYPES: np.ones_like(found["position_ids"])}
