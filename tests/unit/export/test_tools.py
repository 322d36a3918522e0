"""Exports survive other people's tools: optimised, inlined, converted or simplified, they load again and answer alike.

OnnxSlim and ONNX's version converter know no model-local functions (the one recurses on them in a branch, the other
drops them): they get what ``onnx.inliner`` makes of an export.
"""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
import onnx_ir as ir
import onnxruntime
import onnxsim
import onnxslim
import pytest
from shared import once

from safetykit.adapters.errors import UnsupportedGraph
from safetykit.export.manifest import read_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.export.surgery.answering import without_branch
from safetykit.export.surgery.capture import capture_obstacles

ITEMS = (
    ("GatedSteering", "decoder.layers.1", "last", "prefill"),
    ("SubspaceProjection", "decoder.layers.2.mlp", "all", "both"),
)


def optimised(path: Path, level: str) -> bytes:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/saved.onnx"
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return Path(options.optimized_model_filepath).read_bytes()


def inlined(path: Path) -> onnx.ModelProto:
    return onnx.inliner.inline_local_functions(onnx.load(path))


def converted(path: Path) -> onnx.ModelProto:
    model = inlined(path)
    opset = next(one.version for one in model.opset_import if one.domain == "")
    return onnx.version_converter.convert_version(model, opset + 1)


TOOLS = {
    "ONNX Runtime BASIC": lambda path: optimised(path, "BASIC"),
    "ONNX Runtime EXTENDED": lambda path: optimised(path, "EXTENDED"),
    "ONNX Runtime ALL": lambda path: optimised(path, "ALL"),
    "inliner": lambda path: inlined(path).SerializeToString(),
    "inliner, converter": lambda path: converted(path).SerializeToString(),
    "inliner, OnnxSlim": lambda path: onnxslim.slim(inlined(path)).SerializeToString(),
    "onnxsim": lambda path: onnxsim.simplify(onnx.load(path))[0].SerializeToString(),
}
ARMS = ("corrector", "stacked", "enforced", "held", "hot-swap", "hot-swap stacked")


@pytest.fixture(scope="session")
def adapted(vlm, base_folder, make_adapter, make_detector, tmp_path_factory):
    """``adapted(arm)``: the export of one arm, opened."""

    def run(arm: str) -> OnnxVLM:
        corrector, detector = make_adapter(*ITEMS), make_detector(threshold=1e3)
        held = tuple(dataclasses.replace(one, gate="held", phase="both") for one in corrector.interventions[:1])
        adapters = {
            "corrector": [corrector],
            "held": [dataclasses.replace(corrector, interventions=held)],
            "hot-swap": [corrector],
        }.get(arm, [corrector, detector])

        def make(folder: Path) -> None:
            folder.mkdir()
            base = read_manifest(base_folder)
            copy_base(base_folder, folder, base)
            adapt(folder, base, adapters, mode="hot-swap" if "hot-swap" in arm else "bake", enforce=arm == "enforced")

        folder = once(tmp_path_factory, f"tiny-llava-tools-{arm.replace(' ', '-')}", make)
        return OnnxVLM(folder, read_manifest(folder), vlm.inputs, ["CPUExecutionProvider"])

    return run


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_a_tools_graph_loads_again_and_answers_alike(adapted, requests, arm, capfd):
    model = adapted(arm)
    ours = model.generate(requests, 6)
    for tool, apply in TOOLS.items():
        data = apply(model.path / "decoder.onnx")
        theirs = model.with_decoder(data).generate(requests, 6)
        assert [one.token_ids for one in ours] == [one.token_ids for one in theirs], tool
        for one, other in zip(ours, theirs, strict=True):
            assert other.scores == pytest.approx(one.scores, abs=1e-4), tool


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["stacked", "enforced", "hot-swap stacked"])
def test_the_decoder_for_the_answer_has_no_control_flow_and_the_same_bits(adapted, requests, arm):
    model = adapted(arm)
    whole = ir.load(model.path / "decoder.onnx")
    assert capture_obstacles(whole) == ("1 If (control flow)",)
    answering = without_branch(whole)
    assert capture_obstacles(answering) == () and not any("branch" in name for _, name, _ in answering.functions)
    other = model.with_decoder(ir.to_proto(answering).SerializeToString())
    ours = theirs = model.prefill_requests(requests)
    for _ in range(3):
        tokens = ours.logits[:, -1].argmax(-1)
        ours, theirs = model.step(ours, tokens), other.step(dataclasses.replace(theirs, swaps=other._swaps), tokens)
        assert np.array_equal(ours.logits, theirs.logits)
        assert all(np.array_equal(value, theirs.past[name]) for name, value in ours.past.items())


def test_a_decoder_without_a_branch_has_none_to_take_out(adapted):
    with pytest.raises(UnsupportedGraph, match="No branch"):
        without_branch(ir.load(adapted("corrector").path / "decoder.onnx"))
