"""Chat texts as padded batches for the language model, its greedy answers, and how often it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safetykit.toolkit.evaluation.evaluate import Rate
from safetykit.toolkit.evaluation.judge import is_refusal

IGNORED = -100


@dataclass(frozen=True)
class Turn:
    """One request and the answer to learn, as token ids; `weight` of a batch is its number of answer tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def chat_ids(tokenizer: PreTrainedTokenizerBase, request: str) -> tuple[int, ...]:
    """A user's request in the chat template, up to where the answer begins."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=False
    )
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_ids(tokenizer: PreTrainedTokenizerBase, answer: str) -> tuple[int, ...]:
    """An answer with the end of its turn."""
    return (*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)


def batches(lengths: Sequence[int], size: int, rng: np.random.Generator, window: int = 16) -> Iterator[list[int]]:
    """Indices in random order, yet rows of a batch of like length: shuffled windows are sorted and cut."""
    order = rng.permutation(len(lengths))
    groups = []
    for start in range(0, len(order), size * window):
        part = sorted(order[start : start + size * window].tolist(), key=lambda at: lengths[at])
        groups += [part[at : at + size] for at in range(0, len(part), size)]
    for at in rng.permutation(len(groups)):
        yield groups[at]


def padded(
    turns: Sequence[Turn], pad: int
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Input ids, attention mask and labels, padded on the right; prompts are not learned."""
    width = max(map(len, turns))
    ids = torch.full((len(turns), width), pad)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, turn in enumerate(turns):
        both = torch.tensor(turn.prompt + turn.answer)
        ids[row, : len(both)], mask[row, : len(both)] = both, 1
        labels[row, len(turn.prompt) : len(both)] = both[len(turn.prompt) :]
    return ids, mask, labels


def answer_loss(hidden: Tensor, head: torch.nn.Module, labels: Int[Tensor, "batch seq"]) -> Tensor:
    """Mean cross-entropy over answer tokens; only their positions go through the head."""
    wanted = labels[:, 1:] != IGNORED
    return F.cross_entropy(head(hidden[:, :-1][wanted]).float(), labels[:, 1:][wanted])


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[str],
    new_tokens: int,
    batch: int = 32,
    opening: str = "",
) -> Iterator[tuple[int, str, bool]]:
    """Greedy answers: position of the request, text, and whether the model ended it; short requests first.

    Args:
        opening: words that every answer is made to begin with.
    """
    begun = tokenizer(opening, add_special_tokens=False)["input_ids"] if opening else []
    ids = [(*chat_ids(tokenizer, request), *begun) for request in requests]
    order = sorted(range(len(ids)), key=lambda at: len(ids[at]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = max(len(ids[at]) for at in rows)
        table = torch.full((len(rows), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(table)
        for row, at in enumerate(rows):
            table[row, width - len(ids[at]) :], mask[row, width - len(ids[at]) :] = torch.tensor(ids[at]), 1
        made = model.generate(
            input_ids=table,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )[:, width:]
        for row, at in enumerate(rows):
            ended = bool((made[row] == tokenizer.eos_token_id).any())
            yield at, (opening + tokenizer.decode(made[row], skip_special_tokens=True)).strip(), ended


def refusal_rate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, requests: Sequence[str]) -> Rate:
    """Share of requests whose greedy answer opens with a refusal."""
    return Rate.of(sum(is_refusal(text) for _, text, _ in answers(model, tokenizer, requests, 14)), len(requests))
