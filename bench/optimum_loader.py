"""Greedy answers of a decoder through optimum's own loader; to be run where optimum is installed.

    python bench/optimum_loader.py FOLDER PROMPTS.json OUT.json

PROMPTS holds lists of token ids and the number of new tokens; OUT gets lists of token ids. Needs neither safetykit nor
its version of transformers, see README, extra `optimum`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from optimum.onnxruntime import ORTModelForCausalLM


def main() -> None:
    folder, prompts, out = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    model = ORTModelForCausalLM.from_pretrained(folder, use_cache=True, use_io_binding=False)
    wanted = json.loads(prompts.read_text())
    answers = []
    for ids in wanted["prompts"]:
        tokens = torch.tensor([ids])
        made = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=wanted["max_new_tokens"],
            do_sample=False,
            eos_token_id=wanted["eos"],
            pad_token_id=wanted["pad"],
        )
        answers.append(made[0, tokens.shape[1] :].tolist())
    out.write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
