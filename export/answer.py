"""Asking an export, as `safetykit run` does; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..adapters.errors import UsageError
from ..toolkit.inputs import Request
from ..toolkit.records import open_picture
from .runtime import OnnxVLM
from .sessions import CPU


def answer(
    folder: Path,
    prompts: Sequence[str],
    images: Sequence[Path],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    providers: Sequence[str] = CPU,
) -> list[dict[str, Any]]:
    """Generate with an export; one picture serves all prompts, or there is one for each.

    Raises:
        UsageError: the numbers of pictures and prompts do not match, or a picture cannot be read.
    """
    if len(images) not in (0, 1, len(prompts)):
        raise UsageError(
            f"{len(images)} pictures for {len(prompts)} prompts.", "Give one picture for all, or one for each prompt."
        )
    pictures = [open_picture(str(path)) for path in images]
    if len(pictures) == 1:
        pictures *= len(prompts)
    requests = [Request(prompt, pictures[at] if pictures else None) for at, prompt in enumerate(prompts)]
    answers = OnnxVLM.from_pretrained(folder, providers).generate(
        requests, max_new_tokens, do_sample=temperature > 0, temperature=temperature or 1.0, top_p=top_p, seed=seed
    )
    return [
        {"prompt": prompt, "text": item.text, "tokens": len(item.token_ids), "scores": item.scores}
        for prompt, item in zip(prompts, answers, strict=True)
    ]
