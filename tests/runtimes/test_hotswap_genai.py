"""GenAI with a hot-swap export: the defaults act, and an adapter file that it ignores leaves them in force.

Version 0.18.0 loads ``.onnx_adapter`` files and sets them active, but its pipeline for pictures does not hand them to
the decoder it runs, without a word. A later version that does will fail here.
"""

import importlib.util

import pytest

from safetykit.bench.runtimes import genai_answers, greedy
from safetykit.export.layouts.arrange import arrange
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime_genai") is None, reason="onnxruntime-genai is not installed"
)
ITEMS = (
    ("SubspaceProjection", "decoder.layers.0", "all", "both"),
    ("GatedSteering", "decoder.layers.1", "all", "both"),
)
LENGTH = 8


def test_an_adapter_file_that_its_pipeline_ignores_leaves_the_defaults_in_force(
    vlm, base_folder, make_adapter, requests, tmp_path
):
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
    assert genai_answers(arranged, requests, LENGTH) == defaults
    assert genai_answers(arranged, requests, LENGTH, other / "decoder.onnx_adapter") == defaults
