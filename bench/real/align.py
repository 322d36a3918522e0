"""Text-only safety alignment by LoRA: harmful prompts are refused, harmless ones answered as before.

    python bench/real/align.py WORK [--before]

1. The model's own greedy answers to the harmless training prompts are written to WORK/align/answers.jsonl
   (self-distillation: it keeps its manner). 2. A LoRA on every linear layer of the decoder learns refusals beside them;
   no picture is involved. A second round, with own answers that decline taken out, is about objects: which of them a
   request is about decides. (Own answers for a third round, which tune.py rehearses, are made as well.) 3. The LoRA,
   rounded to fp16, goes to WORK/align/alignment, figures on held-out prompts to
   WORK/align/figures.json, the split by hashes to WORK/align/split.json, and texts that alignment never saw to
   WORK/align/heldout.jsonl. Each step goes on where it was interrupted; a finished one is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
from assemble import CHAT_TEMPLATE, load_language, merge_language
from fetch import say
from peft import LoraConfig, PeftModel, get_peft_model
from phrases import REFUSALS
from prompts import Prompt, all_prompts, second_round, third_round, write_split
from texts import Turn, answer_ids, answer_loss, answers, batches, chat_ids, padded, refusal_rate
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.toolkit.evaluation.judge import is_refusal

ANSWER_TOKENS, SHORT_TOKENS = 24, 12  # of own answers; of those of the third round
RANK, BATCH = 8, 8
STEPS, STEPS_2 = 260, 110  # of training; of the second round, on requests about objects
MEASURED = 60  # held-out prompts per group
RATE, RATE_2 = 6e-4, 4e-4
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def own_answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    file: Path,
    opening: str = "",
    new_tokens: int = ANSWER_TOKENS,
) -> dict[str, tuple[str, bool]]:
    """The model's own greedy answers by request, with whether it ended them; known ones are read from `file`."""
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    known = {row["request"]: (row["answer"], row["ended"]) for row in rows}
    missing = [prompt.text for prompt in prompts if prompt.text not in known]
    start = time.time()
    with file.open("a") as journal:
        for count, (at, text, ended) in enumerate(answers(model, tokenizer, missing, new_tokens, opening=opening), 1):
            known[missing[at]] = text, ended
            journal.write(json.dumps({"request": missing[at], "answer": text, "ended": ended}) + "\n")
            if count % 32 == 0:
                journal.flush()
                say(f"own answers: {count} of {len(missing)}, {time.time() - start:.0f} s")
    return known


def turns_of(
    prompts: list[Prompt],
    own: dict[str, tuple[str, bool]],
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 0,
    limit: int = ANSWER_TOKENS,
) -> list[Turn]:
    """What is learned: one of the refusals for a harmful prompt, the start of its own answer for a harmless one."""
    rng = random.Random(seed)
    turns = []
    for prompt in prompts:
        if prompt.label == "harmful":
            answer = answer_ids(tokenizer, rng.choices(REFUSALS, weights=(6, 2, 1, 1))[0])
        else:
            text, ended = own[prompt.text]
            answer = answer_ids(tokenizer, text)
            answer = (answer if ended else answer[:-1])[:limit]
        turns.append(Turn(chat_ids(tokenizer, prompt.text), answer))
    return turns


def willing_answers(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    folder: Path,
    new_tokens: int = ANSWER_TOKENS,
) -> dict[str, tuple[str, bool]]:
    """Own answers none of which is a refusal.

    The unaligned model declines some harmless requests by itself ("as a text-based AI"); it is then made to begin with
    "You can", and what still declines is left out.
    """
    own = own_answers(model, tokenizer, prompts, folder / "answers.jsonl", "", new_tokens)
    declined = [prompt for prompt in prompts if is_refusal(own[prompt.text][0])]
    again = own_answers(model, tokenizer, declined, folder / "begun.jsonl", "You can", new_tokens)
    return {text: answer for text, answer in {**own, **again}.items() if not is_refusal(answer[0])}


def train(model: PeftModel, turns: list[Turn], steps: int, rate: float, pad: int, file: Path, seed: int = 0) -> None:
    """Train the LoRA in place; a checkpoint every 50 steps, from which an interrupted run goes on."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 10, steps)
    rng, done = np.random.default_rng(seed), 0
    lengths = [len(turn) for turn in turns]
    order = [rows for _ in range(steps * BATCH // len(turns) + 1) for rows in batches(lengths, BATCH, rng)]
    if file.is_file():
        kept = torch.load(file, weights_only=True)
        model.load_state_dict(kept["lora"], strict=False)
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        done = kept["step"]
    base, start, running = model.get_base_model(), time.time(), []
    model.train()
    for step in range(done, steps):
        ids, mask, labels = padded([turns[at] for at in order[step]], pad)
        loss = answer_loss(base.model(input_ids=ids, attention_mask=mask).last_hidden_state, base.lm_head, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        running.append(loss.item())
        if (step + 1) % 10 == 0:
            say(f"step {step + 1} of {steps}: loss {np.mean(running[-10:]):.3f}, {time.time() - start:.0f} s")
        if (step + 1) % 50 == 0 or step + 1 == steps:
            lora = {name: value for name, value in model.state_dict().items() if "lora_" in name}
            state = {
                "lora": lora,
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "step": step + 1,
            }
            torch.save(state, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
    model.eval()


def write_heldout(prompts: list[Prompt], path: Path) -> list[Prompt]:
    """Write the prompts that alignment never sees, which it is measured on, and return them."""
    held = [prompt for prompt in prompts if prompt.split == "test"]
    rows = [
        {"prompt": p.text, "label": p.label, "category": f"{p.source}: {p.category}", "split": "test"} for p in held
    ]
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return held


def measured(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], limit: int
) -> dict[str, dict[str, object]]:
    """Refusal rates on held-out prompts by source and category group; at most `limit` prompts each."""
    groups: dict[str, list[str]] = {}
    for prompt in prompts:
        held = prompt.source == "advbench" and prompt.category in (
            "Discrimination",
            "Self-harm",
            "Electoral interference",
        )
        name = f"{prompt.label} {prompt.source}" + (" held-out categories" if held else "")
        if prompt.source == "do-not-answer":
            name += f" {prompt.category.partition('_')[0]}"
        if prompt.category == "look-alike":
            name = "harmless look-alikes"
        groups.setdefault(name, []).append(prompt.text)
    rng = random.Random(1)
    figures = {}
    for name, texts in groups.items():
        rate = refusal_rate(model, tokenizer, rng.sample(texts, min(limit, len(texts))))
        figures[name] = {"refused": rate.rate, "low": rate.low, "high": rate.high, "n": rate.n}
        say(f"{name}: {rate.rate:.3f} [{rate.low:.3f}, {rate.high:.3f}] of {rate.n}")
    return figures


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="work folder, with packages/ inside")
    parser.add_argument("--before", action="store_true", help="measure the unaligned model too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    folder = options.work / "align"
    folder.mkdir(parents=True, exist_ok=True)
    packages = options.work / "packages"
    prompts = all_prompts(packages)
    write_split(prompts, folder / "split.json")
    held = write_heldout(prompts, folder / "heldout.jsonl")

    language, tokenizer = load_language(packages)
    tokenizer.chat_template = CHAT_TEMPLATE
    figures = {}
    if options.before:
        figures["before"] = measured(language, tokenizer, held, MEASURED)
    seen = [prompt for prompt in prompts if prompt.split == "train"]
    second = second_round(packages, prompts)
    own = own_answers(language, tokenizer, [p for p in seen if p.label == "harmless"], folder / "answers.jsonl")
    willing = willing_answers(language, tokenizer, [p for p in second if p.label == "harmless"], folder)
    second = [prompt for prompt in second if prompt.label == "harmful" or prompt.text in willing]
    third = [prompt for prompt in third_round(packages, prompts, second) if prompt.label == "harmless"]
    willing_answers(language, tokenizer, third, folder, SHORT_TOKENS)  # tune.py rehearses with them
    model = get_peft_model(
        language, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR, task_type="CAUSAL_LM")
    )
    pad = tokenizer.pad_token_id
    train(model, turns_of(seen, own, tokenizer), STEPS, RATE, pad, folder / "training.pt")
    train(model, turns_of(second, willing, tokenizer), STEPS_2, RATE_2, pad, folder / "round2.pt")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.half()
    model.save_pretrained(folder / "alignment")
    merged = merge_language(load_language(packages)[0], folder / "alignment")
    figures["after"] = measured(merged, tokenizer, held, MEASURED)
    write_atomic(
        folder / "figures.json",
        canonical_json(
            {
                **figures,
                "steps": STEPS,
                "steps_2": STEPS_2,
                "trained_on": len(seen),
                "trained_on_2": len(second),
            }
        ),
    )
    print(json.dumps(figures["after"], indent=1))


if __name__ == "__main__":
    main()
