"""Asking an export, as `safetykit run` does; needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...adapters.errors import UsageError
from ...toolkit.data.pictures import open_picture
from ...toolkit.evaluation.judge import is_refusal
from ...toolkit.model.requests import Request
from .onnx_vlm import OnnxVLM
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
    external_index: Path | None = None,
    swap: Sequence[Path] = (),
    allow_uncorrected_detector: bool = False,
    system: str = "",
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Generate with an export; one picture serves all prompts, or there is one for each, or several for a single one.

    Args:
        swap: what a hot-swap export is to run with instead of its own adapters; see :meth:`OnnxVLM.swap`.
        allow_uncorrected_detector: swap in a detector that was not fitted under the correctors beside it.
        system: what the operator says before every prompt.
        progress: told what begins, once prompts and pictures are there.

    Returns:
        JSON-able, per prompt: ``prompt``, ``text``, ``tokens``, ``scores``, and whether it was ``refused``: by the
        detector before anything was generated (``refused_by_detector``), or by the model, whose answer opens with a
        refusal (``refused_by_model``). With a detector also ``risk`` (log-odds of harm) and ``threshold``; with
        retrieval ``retrieved``, the texts found for the picture.

    Raises:
        UsageError: the numbers of pictures and prompts do not match, a picture cannot be read, or the model's chat
            template has no system turn.
    """
    if len(images) not in (0, 1, len(prompts)) and len(prompts) > 1:
        raise UsageError(
            f"{len(images)} pictures for {len(prompts)} prompts.", "Give one picture for all, or one for each prompt."
        )
    pictures = [open_picture(str(path)) for path in images]
    if len(pictures) == 1:
        pictures *= len(prompts)
    if len(prompts) == 1:
        requests = [Request(prompts[0], pictures, system=system)]
    else:
        requests = [
            Request(prompt, pictures[at] if pictures else None, system=system) for at, prompt in enumerate(prompts)
        ]
    say = progress or (lambda step: None)
    say("loading")
    model = OnnxVLM.from_pretrained(folder, providers, index=external_index)
    if swap:
        model.swap(*swap, allow_uncorrected_detector=allow_uncorrected_detector)
    say("answering")
    answers = model.generate(
        requests, max_new_tokens, do_sample=temperature > 0, temperature=temperature or 1.0, top_p=top_p, seed=seed
    )
    detector = model.detector
    retrieved: list[tuple[str, ...]] = (
        model.retrieved(pictures) if model.retriever and pictures else [()] * len(prompts)
    )
    if len(prompts) == 1:
        retrieved = [tuple(text for texts in retrieved for text in texts)]
    found = []
    for prompt, item, texts in zip(prompts, answers, retrieved, strict=True):
        value: dict[str, Any] = {"prompt": prompt, "text": item.text, "tokens": len(item.token_ids)}
        own = not item.refused and is_refusal(item.text)
        value |= {"scores": item.scores, "refused": item.refused or own}
        value |= {"refused_by_detector": item.refused, "refused_by_model": own}
        if detector:
            value |= {"risk": item.scores["risk"] + detector.threshold, "threshold": detector.threshold}
        if model.retriever:
            value["retrieved"] = list(texts)
        found.append(value)
    return found
