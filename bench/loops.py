"""What a server is asked, with the answers that it must give, and the loops that it is compared with."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetykit.bench.load import CONTROL, LOOP, Arm, Question, body, loop
from safetykit.bench.runtimes import genai_answers
from safetykit.bench.soak import canary_of
from safetykit.export.layouts.arrange import arrange
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.requests import Request

SHORTEST, LONGEST = 8, 128  # answers of mixed lengths, in tokens
_BATCH = 32  # as of `eval`


def questions(model: OnnxVLM, records: Sequence[Record], tokens: int | Sequence[int]) -> list[Question]:
    """Every record with the answer that a batch gives it, of at most so many tokens."""
    asked, most = [request_of(record) for record in records], each_of(tokens, len(records))
    longest = [one for at in range(0, len(asked), _BATCH) for one in model.generate(asked[at : at + _BATCH], max(most))]
    threshold, refusal = (model.detector.threshold, model.detector.refusal) if model.detector else (0.0, None)
    answers = [
        model.inputs.generation(one.token_ids[:size], one.scores, refusal)
        for one, size in zip(longest, most, strict=True)
    ]
    return [
        Question(body(request, size), answer, threshold, canary_of(record, answer))
        for record, request, size, answer in zip(records, asked, most, answers, strict=True)
    ]


def mixed_lengths(count: int) -> list[int]:
    """So many lengths of answers, whose logarithms are spread evenly."""
    draw = random.Random(0)
    return [round(SHORTEST * (LONGEST / SHORTEST) ** draw.random()) for _ in range(count)]


def each_of(tokens: int | Sequence[int], count: int) -> list[int]:
    """How many tokens each of so many answers has at most."""
    return [tokens] * count if isinstance(tokens, int) else list(tokens)


def loops(model: OnnxVLM, requests: Sequence[Request], tokens: int | Sequence[int]) -> dict[str, Arm]:
    """The loop over the export that all is compared with, and it again."""

    def answer(request: Request, most: int) -> int:
        found = model.generate(request, most)
        return 0 if found.refused else len(found.token_ids)

    most = each_of(tokens, len(requests))
    return dict.fromkeys((LOOP, CONTROL), lambda: loop(answer, requests, most))


def of_genai(folder: Path, export: Path, requests: Sequence[Request], tokens: int | Sequence[int]) -> Arm:
    """GenAI's loop on a copy of the export in its layout."""
    import onnxruntime_genai

    if not folder.is_dir():
        shutil.copytree(export, folder)
        arrange(folder, read_manifest(folder, verify=False), "genai")
    ours, theirs = OnnxVLM.from_pretrained(folder), onnxruntime_genai.Model(str(folder))

    def answer(request: Request, most: int) -> int:
        return len(genai_answers(ours, [request], most, model=theirs)[0])

    return lambda: loop(answer, requests, each_of(tokens, len(requests)))
