"""The training loop that stages 1, 2, 4 and 5 share: draw turns, make batches, step, log."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from .dialogue import Turn
from .model import IMAGE_TOKENS


class Encoder:
    """Turns to token ids, in the markup of the chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.backend = tokenizer.backend_tokenizer
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id
        self.image = tokenizer.convert_tokens_to_ids("<image>")

    def __call__(self, turns: list[Turn]) -> tuple[Tensor, Tensor]:
        """Right-padded ids [n, length] and labels [n, length]: -100 everywhere but on the response and the end."""
        shown = "<image>" * IMAGE_TOKENS
        asked = [f"user: {shown * (t.picture is not None)} {t.prompt} assistant:" if t.prompt else "" for t in turns]
        prompts = [e.ids for e in self.backend.encode_batch(asked)]
        answers = [[*e.ids, self.end] for e in self.backend.encode_batch([t.response for t in turns])]
        length = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
        ids = torch.full((len(turns), length), self.pad)
        labels = torch.full((len(turns), length), -100)
        for row, (p, a) in enumerate(zip(prompts, answers, strict=True)):
            ids[row, : len(p) + len(a)] = torch.tensor(p + a)
            labels[row, len(p) : len(p) + len(a)] = torch.tensor(a)
        return ids, labels


def turn_loss(
    model: LlavaForConditionalGeneration, encoder: Encoder, turns: list[Turn], features: Tensor | None
) -> tuple[Tensor, int]:
    """Summed cross-entropy over the response tokens, and their number.

    `features` are the tower's patch tokens per picture [pictures, 16, d_vision]; None if no turn has a picture.
    Padding is on the right, so the causal mask alone keeps it out of everything that counts.
    """
    ids, labels = encoder(turns)
    embeddings = model.get_input_embeddings()(ids)
    if turns[0].picture is not None:
        seen = model.model.multi_modal_projector(features[[t.picture for t in turns]])
        embeddings = embeddings.masked_scatter((ids == encoder.image).unsqueeze(-1), seen)
    states = model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    wanted = targets != -100
    logits = model.lm_head(states[:, :-1][wanted])
    return F.cross_entropy(logits, targets[wanted], reduction="sum"), int(wanted.sum())


def batches(draw: Callable[[random.Random], Turn], size: int, rng: random.Random) -> Iterator[list[Turn]]:
    """An endless stream of batches; each holds turns of like length, so that little is spent on padding."""
    while True:
        pool = sorted((draw(rng) for _ in range(8 * size)), key=lambda t: (t.picture is None, len(t.prompt.split())))
        chunks = [pool[start : start + size] for start in range(0, len(pool), size)]
        rng.shuffle(chunks)
        yield from chunks


class Optimizer:
    """Muon for weight matrices, AdamW for embeddings, norms and biases; linear warm-up, then linear decay.

    Several hundred separate facts are learnt by heart in clearly fewer steps than with AdamW alone.
    """

    def __init__(self, module: nn.Module, matrix_rate: float, other_rate: float, steps: int, warmup: int = 40) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in named if p.ndim != 2 or "embed" in name]
        self.parameters = matrices + others
        self.parts = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, matrix_rate, weight_decay=0.01, ns_steps=4, adjust_lr_fn="match_rms_adamw"
            )
            self.parts.append((muon, matrix_rate))
        if others:
            self.parts.append((torch.optim.AdamW(others, other_rate, betas=(0.9, 0.98), weight_decay=0.01), other_rate))
        self.steps, self.warmup, self.done = steps, warmup, 0

    def step(self) -> None:
        """Clip, update, and drop the gradients."""
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        factor = min(1.0, (self.done + 1) / self.warmup) * max(0.03, 1 - self.done / self.steps)
        for optimizer, rate in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.done += 1


def train(
    model: LlavaForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    draw: Callable[[random.Random], Turn],
    groups: list[tuple[nn.Module, float, float]],
    steps: int,
    seed: int,
    log: Callable[..., None],
    features: Callable[[], Tensor] | None = None,
    batch: int = 96,
    watch: Callable[[int], None] | None = None,
) -> None:
    """Train some modules of the model in place for `steps` batches of turns; all else stays frozen.

    `groups` holds (module, peak rate of its matrices, peak rate of its other parameters). `features` returns the
    table of patch tokens and is called every hundred steps; `watch` is called after every step.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    encoder = Encoder(tokenizer)
    model.requires_grad_(False)
    for module, _, _ in groups:
        module.requires_grad_(True)
    optimizers = [Optimizer(module, matrix, other, steps) for module, matrix, other in groups]
    model.train()
    start, table, total, count = time.time(), None, 0.0, 0
    stream = batches(draw, batch, rng)
    for step in range(1, steps + 1):
        if features is not None and step % 100 == 1:
            table = features()
        turns = next(stream)
        parts = [[t for t in turns if t.picture is None], [t for t in turns if t.picture is not None]]
        losses = [turn_loss(model, encoder, part, table) for part in parts if part]
        loss = sum(part for part, _ in losses) / sum(n for _, n in losses)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        total, count = total + loss.item(), count + 1
        if step % 50 == 0 or step == steps:
            log(step=step, loss=round(total / count, 4), seconds=round(time.time() - start))
            total, count = 0.0, 0
        if watch is not None:
            watch(step)
    model.eval()
