"""GenAI with a hot-swap export: the defaults act, and an adapter file that it ignores leaves them in force.

Version 0.18.0 loads ``.onnx_adapter`` files and sets them active, but its pipeline for pictures does not hand them to
the decoder it runs, without a word. A later version that does will fail here.
"""

import importlib.util

import numpy as np
import pytest
from runtimes import greedy

from safetykit.export.adapt import adapt, copy_base
from safetykit.export.layout import read_manifest
from safetykit.export.layouts.arrange import arrange
from safetykit.export.runtime import OnnxVLM

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed"
)
ITEMS = (("SubspaceProjection", "decoder.layers.0", "all", "both"), ("GatedSteering", "decoder.layers.1", "all", "both"))
LENGTH = 8


def genai_with(vlm: OnnxVLM, request, path) -> tuple[int, ...]:
    """GenAI's greedy tokens; with the adapter file at ``path``, if any, in the place of the defaults."""
    import onnxruntime_genai

    model = onnxruntime_genai.Model(str(vlm.path))
    inputs = vlm.inputs.prepare([request])
    length = inputs.input_ids.shape[1]
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(max_length=length + LENGTH)
    tensors = onnxruntime_genai.NamedTensors()
    tensors["input_ids"] = inputs.input_ids.astype(np.int32)
    if inputs.pixel_values is not None:
        tensors["pixel_values"] = inputs.pixel_values
        tensors["num_image_tokens"] = np.array([inputs.vision_mask.sum()], np.int64)
    generator = onnxruntime_genai.Generator(model, params)
    if path is not None:
        adapters = onnxruntime_genai.Adapters(model)
        adapters.load(str(path), "other")
        generator.set_active_adapter(adapters, "other")
    generator.set_inputs(tensors)
    while not generator.is_done():
        generator.generate_next_token()
    tokens = [int(token) for token in generator.get_sequence(0)[length:]]
    ends = [at for at, token in enumerate(tokens) if token in vlm.inputs.eos_token_ids]
    return tuple(tokens[: ends[0]] if ends else tokens)


def test_an_adapter_file_that_its_pipeline_ignores_leaves_the_defaults_in_force(vlm, base_folder, make_adapter, requests, tmp_path):
    opened = {}
    for name, seed, rank in (("own", 1, 2), ("other", 2, 5)):
        folder = tmp_path / name
        folder.mkdir()
        base = read_manifest(base_folder)
        copy_base(base_folder, folder, base)
        adapt(folder, base, [make_adapter(*ITEMS, seed=seed, rank=rank)], mode="hot-swap")
        opened[name] = OnnxVLM.from_pretrained(folder)
    plain, other = opened["own"], opened["other"].path
    defaults = [greedy(plain, request, LENGTH) for request in requests]
    plain.swap(other)
    swapped = [greedy(plain, request, LENGTH) for request in requests]
    assert swapped != defaults
    arrange(plain.path, read_manifest(plain.path), "genai")
    arranged = OnnxVLM.from_pretrained(plain.path)
    assert [genai_with(arranged, request, None) for request in requests] == defaults
    path = other / "decoder.onnx_adapter"
    assert [genai_with(arranged, request, path) for request in requests] == defaults
