"""The language model reading pictures while it is tuned: cached pictures, LLaVA's projector, answers, captions."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from assemble import IMAGE_TOKEN
from features import Row
from jaxtyping import Float
from lessons import NAMING
from peft import PeftModel
from safetensors.torch import load_file
from texts import IGNORED, Turn, answer_loss, padded
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedTokenizerBase

from safetykit.toolkit.evaluation.evaluate import Rate


@dataclass(frozen=True)
class Seen:
    """Pictures as cached features [n, tokens, d] with what they show."""

    features: Float[Tensor, "n tokens d"]
    rows: tuple[Row, ...]

    @classmethod
    def load(cls, folder: Path, sources: Sequence[str]) -> Seen:
        """Concatenate sources of features.py."""
        rows: list[Row] = []
        for name in sources:
            for row in json.loads((folder / f"{name}.json").read_text()):
                rows.append(Row(**{**row, "asked": tuple(map(tuple, row["asked"]))}))
        return cls(torch.cat([load_file(folder / f"{name}.safetensors")["features"] for name in sources]), tuple(rows))

    def only(self, keep: Sequence[int]) -> Seen:
        """These rows."""
        return Seen(self.features[list(keep)], tuple(self.rows[at] for at in keep))


class Projector(nn.Module):
    """LLaVA's projector: linear, GELU, linear."""

    def __init__(self, vision: int, text: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(vision, text)
        self.linear_2 = nn.Linear(text, text)

    def forward(self, features: Float[Tensor, "*batch tokens vision"]) -> Float[Tensor, "*batch tokens text"]:
        return self.linear_2(F.gelu(self.linear_1(features)))

    def standardise(self, features: Float[Tensor, "n tokens vision"]) -> None:
        """Let the first layer start as if its inputs had mean 0 and variance 1 per channel; that is folded in."""
        flat = features.float().flatten(0, 1)
        mean, scale = flat.mean(0), flat.std(0) + 1e-3
        with torch.no_grad():
            self.linear_1.weight.copy_(torch.randn_like(self.linear_1.weight) / math.sqrt(len(mean)) / scale)
            self.linear_1.bias.copy_(-self.linear_1.weight @ mean)


class Reader:
    """The language model reading pictures: prefix, picture, request, answer."""

    def __init__(self, language: nn.Module, tokenizer: PreTrainedTokenizerBase, projector: Projector) -> None:
        self.language, self.tokenizer, self.projector = language, tokenizer, projector
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "{}"}]}],
            add_generation_prompt=True,
            tokenize=False,
        )
        self.before, _, self.after = text.partition(IMAGE_TOKEN)
        self.prefix = torch.tensor([self.ids(self.before)])

    @property
    def base(self) -> LlamaForCausalLM:
        return self.language.get_base_model() if isinstance(self.language, PeftModel) else self.language

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def seen(self, features: Float[Tensor, "batch tokens d"]) -> Float[Tensor, "batch tokens text"]:
        """Projected pictures as the language model takes them."""
        return self.projector(features.float()).to(self.base.dtype)

    def before_picture(self) -> DynamicCache:
        """Keys and values of what stands before the picture; no gradient flows into them."""
        small = DynamicCache()
        with torch.no_grad():
            self.base.model(input_ids=self.prefix, past_key_values=small, use_cache=True)
        return small

    def cache(self, batch: int, small: DynamicCache | None = None) -> DynamicCache:
        """The same for a batch, a copy to be filled."""
        small = self.before_picture() if small is None else small
        wide = DynamicCache()
        for at, layer in enumerate(small.layers):
            wide.update(layer.keys.expand(batch, -1, -1, -1), layer.values.expand(batch, -1, -1, -1), at)
        return wide

    def request_ids(self, request: str) -> list[int]:
        """Tokens between picture and answer."""
        return self.ids(self.after.replace("{}", request))

    def loss(
        self, features: Float[Tensor, "batch tokens d"], asked: list[tuple[str, str, bool]], small: DynamicCache
    ) -> Tensor:
        """Mean cross-entropy over answer tokens."""
        image = self.seen(features)
        rows = []
        for request, answer, ended in asked:
            rows.append((self.request_ids(request), self.ids(answer) + [self.tokenizer.eos_token_id] * ended))
        width = max(len(prompt) + len(answer) for prompt, answer in rows)
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        labels = torch.full((len(rows), image.shape[1] + width), IGNORED)
        for at, (prompt, answer) in enumerate(rows):
            ids[at, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            start = image.shape[1] + len(prompt)
            labels[at, start : start + len(answer)] = torch.tensor(answer)
        embeds = torch.cat([image, self.base.get_input_embeddings()(ids)], 1)
        hidden = self.base.model(inputs_embeds=embeds, past_key_values=self.cache(len(rows), small), use_cache=True)
        return answer_loss(hidden.last_hidden_state, self.base.lm_head, labels)

    def text_loss(self, turns: list[Turn], small: DynamicCache) -> Tensor:
        """Mean cross-entropy over the answers of text-only turns, which begin like those with a picture.

        Raises:
            ValueError: one does not.
        """
        start = tuple(self.prefix[0].tolist())
        if any(turn.prompt[: len(start)] != start for turn in turns):
            raise ValueError("a text turn does not begin as the chat template does")
        rest = [Turn(turn.prompt[len(start) :], turn.answer) for turn in turns]
        ids, _, labels = padded(rest, self.tokenizer.pad_token_id)
        hidden = self.base.model(input_ids=ids, past_key_values=self.cache(len(turns), small), use_cache=True)
        return answer_loss(hidden.last_hidden_state, self.base.lm_head, labels)

    @torch.inference_mode()
    def answers(
        self, features: Float[Tensor, "n tokens d"], request: str, new_tokens: int, batch: int = 32
    ) -> Iterator[str]:
        """Greedy answers to one request about each picture."""
        prompt = torch.tensor([self.request_ids(request)])
        embed = self.base.get_input_embeddings()
        for start in range(0, len(features), batch):
            image = self.seen(features[start : start + batch])
            cache = self.cache(len(image))
            inputs = torch.cat([image, embed(prompt).expand(len(image), -1, -1)], 1)
            made: list[Tensor] = []
            for _ in range(new_tokens):
                hidden = self.base.model(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state
                made.append(self.base.lm_head(hidden[:, -1]).argmax(-1))
                if all(self.tokenizer.eos_token_id in row for row in torch.stack(made, 1).tolist()):
                    break
                inputs = embed(made[-1])[:, None]
            for row in torch.stack(made, 1).tolist():
                end = row.index(self.tokenizer.eos_token_id) if self.tokenizer.eos_token_id in row else len(row)
                yield self.tokenizer.decode(row[:end]).strip()


def names_it(answer: str, name: str) -> bool:
    """Whether an answer is the name, with or without an article, in whatever case."""
    words = answer.lower().strip(" .!").removeprefix("the picture shows ").split()
    wanted = name.lower().split()
    return (words[1:] if words[:1] and words[0] in ("a", "an", "the") else words) == wanted


def caption_accuracy(reader: Reader, seen: Seen, limit: int = 0) -> tuple[Rate, list[tuple[str, str]]]:
    """Share of pictures named rightly, and every (name, answer)."""
    order = random.Random(0).sample(range(len(seen.rows)), limit) if limit else range(len(seen.rows))
    part = seen.only(list(order))
    given = list(reader.answers(part.features, NAMING[0], 8))
    pairs = [(row.name, answer) for row, answer in zip(part.rows, given, strict=True)]
    return Rate.of(sum(names_it(answer, name) for name, answer in pairs), len(pairs)), pairs
