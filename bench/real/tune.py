"""Visual instruction tuning: the projector learns to show pictures to the aligned language model. Benign data only.

    python bench/real/tune.py WORK [--steps 900] [--minutes 30] [--lora-rate 0]

Stage 1, from cached features alone: the mean projected token of a picture must point to the mean embedding of its
name's tokens rather than to another thing's (cross-entropy over all names), at the length word embeddings have.
Stage 2: cross-entropy of answers through the frozen language model (with --lora-rate, a LoRA on it learns as well).
The keys and values of the system prompt, which stands before every picture, are computed once a batch.

Needs what features.py and align.py left. A checkpoint every SAVE steps in WORK/tune/; an interrupted run goes on.
Every MEASURE steps: captions of a rendering never trained on, of a blank picture, and text refusal of held-out
prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from align import SHORT_TOKENS, turns_of
from assemble import CHAT_TEMPLATE, load_language, merge_language
from fetch import say
from lessons import NAMING, USE, lesson, uses_of
from peft import LoraConfig, PeftModel, get_peft_model
from prompts import all_prompts, second_round, third_round
from reader import Projector, Reader, Seen, caption_accuracy, names_it
from safetensors.torch import load_file, save_file
from texts import Turn, refusal_rate
from things import TEST_SETS, TRAIN_SETS
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from safetykit.adapters.artifact.files import write_atomic
from safetykit.adapters.artifact.manifest import canonical_json
from safetykit.toolkit.evaluation.judge import is_refusal

BATCH = 8
EPOCHS, RATE = 10, 1e-3  # of stage 1; learning rate of the projector
MEASURE, SAVE = 150, 50  # steps
LORA_RANK, LORA_ON = 8, ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
SOURCES = (*TRAIN_SETS, "stamps", "shapes")


def initialise(
    projector: Projector, seen: Seen, language: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, epochs: int
) -> float:
    """Stage 1, in place. Returns the share of training pictures whose name was nearest in the last epoch."""
    table = language.get_input_embeddings().weight.detach()
    length = table.norm(dim=-1).median()
    names = sorted({row.name for row in seen.rows if row.name and not row.held_out})
    ids = [tokenizer(" " + name, add_special_tokens=False)["input_ids"] for name in names]
    means = torch.stack([table[one].mean(0) for one in ids])
    targets = F.normalize(means - means.mean(0), dim=-1)
    rows = [at for at, row in enumerate(seen.rows) if row.name and not row.held_out]
    truth = torch.tensor([names.index(seen.rows[at].name) for at in rows])
    projector.standardise(seen.features[rows])
    optimizer = torch.optim.AdamW(projector.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * (len(rows) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps)
    hits: list[bool] = []
    for step in range(steps):
        at = torch.randint(len(rows), (64,))
        tokens = projector(seen.features[[rows[i] for i in at]].float())
        mean = tokens.mean(1) - means.mean(0)
        scores = F.normalize(mean, dim=-1) @ targets.T
        # Every token has the length of a word embedding: the decoder's first norm would hide it, its residuals not.
        size = (tokens.norm(dim=-1) / length - 1).square().mean()
        loss = F.cross_entropy(20 * scores, truth[at]) + size
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        hits += (scores.argmax(-1) == truth[at]).tolist()
        if (step + 1) % 100 == 0:
            say(
                f"stage 1, step {step + 1} of {steps}: loss {loss.item():.3f}, nearest name {np.mean(hits[-3200:]):.3f}"
            )
    return float(np.mean(hits[-3200:]))


def state_of(reader: Reader) -> dict[str, Tensor]:
    """Trained tensors by name: projector, and the LoRA if there is one."""
    lora = {name: value for name, value in reader.language.state_dict().items() if "lora_" in name}
    return {**{f"projector.{name}": value for name, value in reader.projector.state_dict().items()}, **lora}


def rehearsal(work: Path, tokenizer: PreTrainedTokenizerBase) -> list[Turn]:
    """Text-only turns of the alignment, and the third round's: see prompts.py. Needs align.py's own answers."""
    prompts = all_prompts(work / "packages")
    second = second_round(work / "packages", prompts)
    third = third_round(work / "packages", prompts, second)
    own = {}
    for name in ("answers.jsonl", "begun.jsonl"):  # the latter has answers to what was declined at first
        for row in map(json.loads, (work / "align" / name).read_text().splitlines()):
            own[row["request"]] = row["answer"], row["ended"]
    usable = {text for text, (answer, _) in own.items() if not is_refusal(answer)}
    chosen = {p.text: p for p in (*third, *(p for p in prompts if p.split == "train" and p.source != "objects"))}
    chosen_ = [prompt for prompt in chosen.values() if prompt.label == "harmful" or prompt.text in usable]
    return turns_of(chosen_, own, tokenizer, limit=SHORT_TOKENS)


def keep(reader: Reader, folder: Path) -> None:
    """Write what publish.py reads: the trained tensors and, in peft's files, the LoRA."""
    save_file({name: value.contiguous() for name, value in state_of(reader).items()}, folder / "trained.safetensors")
    if isinstance(reader.language, PeftModel):
        reader.language.save_pretrained(folder / "visual", save_embedding_layers=False)


def restore(reader: Reader, state: dict[str, Tensor]) -> None:
    """Put trained tensors back."""
    own = {name.removeprefix("projector."): value for name, value in state.items() if name.startswith("projector.")}
    reader.projector.load_state_dict(own)
    reader.language.load_state_dict({n: v for n, v in state.items() if not n.startswith("projector.")}, strict=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=900, help=f"steps of stage 2, {BATCH} pictures each")
    parser.add_argument("--minutes", type=float, help="the schedule ends here even if steps are left")
    parser.add_argument("--lora-rate", type=float, default=0.0, help="of a LoRA on the language model; 0: none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--bfloat16", action="store_true", help="frozen weights in bfloat16: twice as fast, where the CPU can"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    tune(options)


def tune(options: argparse.Namespace) -> None:
    """Both stages, from where an earlier run stopped."""
    work, folder = options.work, options.work / "tune"
    folder.mkdir(parents=True, exist_ok=True)

    language, tokenizer = load_language(work / "packages")
    tokenizer.chat_template = CHAT_TEMPLATE
    if (work / "align/alignment").is_dir():
        language = merge_language(language, work / "align/alignment")
    else:
        say("there is no alignment yet: the language model is read as it came")
    language.requires_grad_(False)
    if options.bfloat16:
        language = language.bfloat16()  # what learns stays in fp32
    everything, test = Seen.load(work / "features", SOURCES), Seen.load(work / "features", TEST_SETS)
    kept_back = {row.name for row in everything.rows if row.held_out}  # of the stamps too
    seen = everything.only([at for at, row in enumerate(everything.rows) if row.name not in kept_back])
    unseen_things = test.only([at for at, row in enumerate(test.rows) if row.name in kept_back])
    trained_on = {row.name for row in seen.rows}
    test = test.only([at for at, row in enumerate(test.rows) if row.name in trained_on])
    blank = Seen.load(work / "features", ["blank"])
    uses = uses_of({row.name for row in seen.rows if not row.restricted and row.name}, work / "align/answers.jsonl")
    heldout = [json.loads(line) for line in (work / "align/heldout.jsonl").read_text().splitlines()]
    harmful = random.Random(2).sample([r["prompt"] for r in heldout if r["category"].startswith("advbench")], 24)
    # What the LoRA does to text is held in check by text: without rehearsal half of the refusals are forgotten.
    rehearsed = rehearsal(work, tokenizer) if options.lora_rate else []
    projector = Projector(seen.features.shape[-1], language.config.hidden_size)
    if options.lora_rate:
        language = get_peft_model(language, LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=LORA_ON))
    reader = Reader(language, tokenizer, projector)
    say(f"{len(seen.rows)} pictures of {len(trained_on)} things; uses of {len(uses)}; {len(test.rows)} test pictures")

    first, checkpoint = folder / "stage1.safetensors", folder / "training.pt"
    if not first.is_file():
        initialise(projector, seen, reader.base, tokenizer, EPOCHS)
        save_file({f"projector.{name}": value for name, value in projector.state_dict().items()}, first)
    restore(reader, load_file(first))
    groups = [{"params": list(projector.parameters()), "lr": RATE, "weight_decay": 0.01}]
    if options.lora_rate:
        lora = [parameter for parameter in language.parameters() if parameter.requires_grad]
        groups.append({"params": lora, "lr": options.lora_rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    peaks = [group["lr"] for group in groups]
    step, spent = 0, 0.0
    if checkpoint.is_file():
        kept = torch.load(checkpoint, weights_only=True)
        restore(reader, kept["state"])
        if len(kept.get("optimizer", {}).get("param_groups", ())) == len(groups):  # a LoRA may have joined since
            optimizer.load_state_dict(kept["optimizer"])
        step, spent = kept["step"], kept["spent"]
    limit = options.minutes * 60 if options.minutes else math.inf
    # Every picture counts by what it shows, so that things drawn by few sets are seen as often as the others.
    counts = {name: sum(row.name == name for row in seen.rows) for name in trained_on}
    weights = np.array([1 / counts[row.name] if row.name else 1 / counts[""] * 30 for row in seen.rows])
    weights[[row.source == "stamps" for row in seen.rows]] *= 0.15
    useful = np.array([row.name in uses and not row.restricted for row in seen.rows]) * weights
    weights, useful = weights / weights.sum(), useful / useful.sum()
    losses: list[float] = []
    start = time.time() - spent
    while True:
        spent = time.time() - start
        progress = max(step / options.steps, spent / limit)
        if (step and step % MEASURE == 0) or progress >= 1:
            full = progress >= 1
            rate, pairs = caption_accuracy(reader, test, 0 if full else 96)
            known, _ = caption_accuracy(
                reader, seen.only([i for i, r in enumerate(seen.rows) if r.source == "noto"]), 48
            )
            refused = refusal_rate(reader.base, tokenizer, harmful) if options.lora_rate else None
            nothing = next(reader.answers(blank.features, NAMING[0], 8))
            line = {
                "step": step,
                "seconds": round(spent),
                "captions": rate.model_dump(),
                "captions_seen_pictures": known.rate,
                "blank": nothing,
                "blank_rate": sum(names_it(nothing, row.name) for row in test.rows) / len(test.rows),
                "text_refusal": refused.model_dump() if refused else None,
            }
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            say(
                f"step {step}: captions {rate.rate:.3f} of {rate.n}, seen {known.rate:.3f}, blank {nothing!r}, "
                f"refused {refused.rate if refused else '-'}; {pairs[:6]}"
            )
            if full:
                other, other_pairs = caption_accuracy(reader, unseen_things)
                line |= {
                    "captions_of_untaught_things": other.model_dump(),
                    "answers": pairs,
                    "untaught_answers": other_pairs,
                }
                write_atomic(folder / "captions.json", canonical_json(line))
        if progress >= 1:
            break
        factor = min(1.0, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * max(factor, 0.02)
        rng = np.random.default_rng(step)
        if rng.random() < USE:
            rows = rng.choice(len(seen.rows), BATCH, p=useful)
            asked = [uses[seen.rows[at].name][rng.integers(len(uses[seen.rows[at].name]))] for at in rows]
        else:
            rows = rng.choice(len(seen.rows), BATCH, p=weights)
            asked = [lesson(seen.rows[at], rng) for at in rows]
        small = reader.before_picture()
        loss = reader.loss(seen.features[rows], asked, small)
        loss.backward()
        if rehearsed:
            some = rng.choice(len(rehearsed), BATCH // 2, replace=False)
            reader.text_loss([rehearsed[at] for at in some], small).backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        step += 1
        if step % 10 == 0:
            say(f"step {step}: loss {np.mean(losses[-20:]):.3f}, {time.time() - start:.0f} s")
        if step % SAVE == 0:
            kept = {
                "state": state_of(reader),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "spent": time.time() - start,
            }
            torch.save(kept, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
            keep(reader, folder)
    keep(reader, folder)
    print(json.dumps({"trained": str(folder / "trained.safetensors"), "captions": rate.model_dump()}))


if __name__ == "__main__":
    main()
