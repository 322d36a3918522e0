"""Runtimes of other people, run on an export as their users would: tokens in, tokens out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.model.requests import Request

NODE = Path(__file__).parent / "node"
# Where `npm ci --ignore-scripts` was run; by default beside the script.
NODE_FOLDER = Path(os.environ.get("SAFETYKIT_NODE", NODE))
PACKAGE = NODE_FOLDER / "node_modules" / "@huggingface" / "transformers"


def without_node() -> str | None:
    """Why transformers.js cannot be run here; None if it can."""
    if shutil.which("node") is None:
        return "node is not installed"
    if not PACKAGE.is_dir():
        return f"run `npm ci --ignore-scripts` in {NODE_FOLDER}"
    return None


def greedy(vlm: OnnxVLM, request: Request, max_new_tokens: int) -> tuple[int, ...]:
    """The best token again and again until the end: what a loop gets that knows nothing of adapters."""
    state, found = vlm.prefill_requests([request]), []
    for _ in range(max_new_tokens):
        tokens = state.logits[:, -1].argmax(-1)
        if tokens[0] in vlm.inputs.eos_token_ids:
            break
        found.append(int(tokens[0]))
        if len(found) < max_new_tokens:
            state = vlm.step(state, tokens)
    return tuple(found)


def genai_answers(
    vlm: OnnxVLM, requests: Sequence[Request], max_new_tokens: int, adapter: Path | None = None, *, model: Any = None
) -> list[tuple[int, ...]]:
    """Answers of ONNX Runtime GenAI to the same token ids and pixels; ``vlm`` is the folder opened by safetykit.

    ``adapter`` is an ``.onnx_adapter`` file that is set active; ``model`` is the folder opened by GenAI, if it is.
    """
    import onnxruntime_genai

    model, answers = model or onnxruntime_genai.Model(str(vlm.path)), []
    for request in requests:
        inputs = vlm.inputs.prepare([request])
        length = inputs.input_ids.shape[1]
        params = onnxruntime_genai.GeneratorParams(model)
        params.set_search_options(max_length=length + max_new_tokens)
        tensors = onnxruntime_genai.NamedTensors()
        tensors["input_ids"] = inputs.input_ids.astype(np.int32)
        if inputs.pixel_values is not None:
            tensors["pixel_values"] = inputs.pixel_values
            tensors["num_image_tokens"] = np.array([inputs.vision_mask.sum()], np.int64)
        generator = onnxruntime_genai.Generator(model, params)
        if adapter is not None:
            loaded = onnxruntime_genai.Adapters(model)
            loaded.load(str(adapter), "other")
            generator.set_active_adapter(loaded, "other")
        generator.set_inputs(tensors)
        while not generator.is_done():
            generator.generate_next_token()
        answers.append(_until(generator.get_sequence(0)[length:], vlm.inputs.eos_token_ids))
    return answers


def node_answers(vlm: OnnxVLM, requests: Sequence[Request], max_new_tokens: int, work: Path) -> list[tuple[int, ...]]:
    """Answers of transformers.js in Node, from prompt and picture files to tokens by its own code.

    Raises:
        RuntimeError: it failed, or made other token ids of a prompt than safetykit.
    """
    work.mkdir(parents=True, exist_ok=True)
    asked = []
    for at, request in enumerate(requests):
        name = None
        if request.image is not None:
            name = str(work / f"{at}.png")
            request.pictures[0].convert("RGB").save(name)
        asked.append({"prompt": request.prompt, "image": name})
    result = run_node({"folder": str(vlm.path.resolve()), "max_new_tokens": max_new_tokens, "requests": asked}, work)
    if "error" in result:
        raise RuntimeError(result["error"])
    for request, answer in zip(requests, result["answers"], strict=True):
        inputs = vlm.inputs.prepare([request])
        if answer["prompt_ids"] != inputs.input_ids[0].tolist():
            raise RuntimeError(f"transformers.js reads {request.prompt!r} as {answer['prompt_ids']}.")
        if inputs.pixel_values is not None:
            pixels = inputs.pixel_values.ravel()[: len(answer["pixels"])]
            np.testing.assert_allclose(answer["pixels"], pixels, atol=1e-6)
    return [_until(answer["token_ids"], vlm.inputs.eos_token_ids) for answer in result["answers"]]


def run_node(job: dict[str, Any], work: Path) -> dict[str, Any]:
    """The answer of ``generate.mjs`` to a job."""
    (work / "job.json").write_text(json.dumps(job))
    shutil.copyfile(NODE / "generate.mjs", NODE_FOLDER / "generate.mjs") if NODE_FOLDER != NODE else None
    command = ["node", "generate.mjs", str(work / "job.json"), str(work / "result.json")]
    run = subprocess.run(command, cwd=NODE_FOLDER, capture_output=True, text=True, timeout=1200)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return json.loads((work / "result.json").read_text())


def _until(tokens: Sequence[int], ends: Sequence[int]) -> tuple[int, ...]:
    found: list[int] = []
    for token in tokens:
        if int(token) in ends:
            break
        found.append(int(token))
    return tuple(found)
