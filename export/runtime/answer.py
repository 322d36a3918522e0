"""Asking an export, as `safetykit run` does; needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...adapters.artifact.hub import located
from ...adapters.errors import BatchRefused, RequestRefused, SafetykitError, UsageError, told
from ...toolkit.data.pictures import open_picture
from ...toolkit.data.sources import is_export
from ...toolkit.evaluation.judge import is_refusal
from ...toolkit.model.chat import read_conversation
from ...toolkit.model.generating import Sampling
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.model.requests import Request
from ...toolkit.model.shortening import shortened
from ..manifest import read_manifest
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
    messages: Path | None = None,
    max_prompt_tokens: int | None = None,
    truncate: bool = False,
    prompt_chunk: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Generate with an export; one picture serves all prompts, or there is one for each, or several for a single one.

    Args:
        swap: what a hot-swap export is to run with instead of its own adapters; see :meth:`OnnxVLM.swap`.
        allow_uncorrected_detector: swap in a detector that was not fitted under the correctors beside it.
        system: what the operator says before every prompt.
        messages: a file with a conversation, in the place of prompts, pictures and ``system``.
        max_prompt_tokens: the longest prompt that is answered; by default what the model takes.
        truncate: drop the oldest turns of a conversation that is too long, see :func:`.shortening.shortened`.
        prompt_chunk: read longer prompts in parts of at most so many tokens, see :meth:`OnnxVLM.chunk_prompts`.
        progress: told what begins, once prompts and pictures are there.

    Returns:
        JSON-able, per prompt: ``prompt``, ``text``, ``tokens``, ``scores``, and whether it was ``refused``: by the
        detector before anything was generated (``refused_by_detector``), or by the model, whose answer opens with a
        refusal (``refused_by_model``). With a detector also ``risk`` (log-odds of harm) and ``threshold``; with
        retrieval ``retrieved``, the texts found for the picture; with ``truncate`` ``dropped_turns`` and
        ``dropped_pictures``. Of one of several prompts that cannot be answered,
        ``prompt`` and ``error``: its ``type``, ``message``, ``next_step`` and ``exit_code``.

    Raises:
        UsageError: the numbers of pictures and prompts do not match, a picture cannot be read, or the model's chat
            template has no system turn.
    """
    if len(images) not in (0, 1, len(prompts)) and len(prompts) > 1:
        raise UsageError(
            f"{len(images)} pictures for {len(prompts)} prompts.", "Give one picture for all, or one for each prompt."
        )
    requests = _requests(prompts, images, system) if messages is None else [read_conversation(messages)]
    prompts = prompts if messages is None else [one.prompt for one in requests if isinstance(one, Request)]
    refused = {at: one for at, one in enumerate(requests) if isinstance(one, SafetykitError)}
    asked = [one for one in requests if isinstance(one, Request)]
    pictures = {at: one.pictures for at, one in enumerate(requests) if isinstance(one, Request)}
    say = progress or (lambda step: None)
    if len(asked) == 1 and not refused and not truncate and is_export(folder):
        read_manifest(located(folder), verify=False)  # which a policy may refuse before anything else is read
        inputs = InputProcessor.from_pretrained(located(folder))
        inputs.limit(max_prompt_tokens)
        inputs.prepare(asked)  # a prompt that cannot be answered is refused before the export's files are read
    say("loading")
    model = OnnxVLM.from_pretrained(folder, providers, index=external_index, opened=False)
    model.inputs.limit(max_prompt_tokens)
    if prompt_chunk is not None:
        model.chunk_prompts(prompt_chunk)
    short = shortened(model.inputs, asked[0]) if truncate else None
    if short is not None:
        asked, pictures = [short.request], {0: short.request.pictures}
    if swap:
        model.swap(*swap, allow_uncorrected_detector=allow_uncorrected_detector)
    model.open()
    say("answering")
    sampling = Sampling(temperature != 0, temperature or 1.0, top_p, seed)
    try:
        answers: list[Any] = model.generate(asked, max_new_tokens, **asdict(sampling)) if asked else []
    except (BatchRefused, RequestRefused) as error:
        if len(prompts) == 1:
            raise
        answers = error.answers if isinstance(error, BatchRefused) else []
        places = [at for at in range(len(prompts)) if at not in refused]
        refused |= {places[at]: one.reason for at, one in error.refused.items()}
    detector, made = model.detector, iter([one for one in answers if one is not None])
    found = []
    for at, prompt in enumerate(prompts):
        if at in refused:
            found.append({"prompt": prompt, "error": told(refused[at])})
            continue
        item, shown = next(made), pictures[at]
        texts = [text for texts in model.retrieved(shown) for text in texts] if model.retriever and shown else []
        value: dict[str, Any] = {"prompt": prompt, "text": item.text, "tokens": len(item.token_ids)}
        own = not item.refused and is_refusal(item.text)
        value |= {"scores": item.scores, "refused": item.refused or own}
        value |= {"refused_by_detector": item.refused, "refused_by_model": own}
        if detector:
            value |= {"risk": item.scores["risk"] + detector.threshold, "threshold": detector.threshold}
        if model.retriever:
            value["retrieved"] = texts
        if short is not None:
            value |= {"dropped_turns": short.turns, "dropped_pictures": short.pictures}
        found.append(value)
    return found


def _requests(prompts: Sequence[str], images: Sequence[Path], system: str) -> list[Request | SafetykitError]:
    """A request for each prompt, or what is wrong with its picture where that is one of several."""
    if len(prompts) == 1 or len(images) < 2:
        pictures = [open_picture(str(path)) for path in images]
        return [Request(prompt, pictures, system=system) for prompt in prompts]
    found: list[Request | SafetykitError] = []
    for prompt, path in zip(prompts, images, strict=True):
        try:
            found.append(Request(prompt, open_picture(str(path)), system=system))
        except SafetykitError as error:
            found.append(error)
    return found
