"""Base graphs compute what PyTorch computes, and nothing else is in them."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from safetykit.adapters.errors import UsageError
from safetykit.export.base.own import export_base
from safetykit.export.base.specs import graph_specs
from safetykit.export.base.tracing import export_graph
from safetykit.export.manifest import GRAPHS, LAYOUT
from safetykit.export.parity.compare import compare_logits, parity_requests
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.families import family_of
from safetykit.toolkit.model.vlm import VLM


@pytest.fixture(scope="module")
def base(base_folder) -> OnnxVLM:
    return OnnxVLM.from_pretrained(base_folder)


@pytest.mark.parametrize("case", parity_requests())
def test_logits_equal_pytorch_at_prefill_and_32_steps(vlm, base, case):
    gap = compare_logits(vlm, base, parity_requests()[case], steps=32).logits
    assert gap.error <= 1e-5 + 2e-6 * gap.scale


def test_a_one_token_prompt_and_a_chunked_prompt_work(vlm, base):
    inputs = vlm.inputs.prepare(parity_requests()["1 row, text"])
    whole = base.prefill(inputs, all_logits=True).logits
    first = dataclasses.replace(
        inputs, **{name: getattr(inputs, name)[:, :1] for name in ("input_ids", "attention_mask", "vision_mask")}
    )
    state = base.prefill(first)
    for at in range(1, whole.shape[1]):
        state = base.step(state, inputs.input_ids[:, at])
    assert np.abs(state.logits[:, -1] - whole[:, -1]).max() < 1e-4


def test_graphs_hold_no_paths_and_all_weights_lie_outside(base_folder):
    for name in GRAPHS:
        proto = (base_folder / LAYOUT.graph(name)).read_bytes()
        assert b"site-packages" not in proto and b".py" not in proto
        for value in ir.load(base_folder / LAYOUT.graph(name)).graph.initializers.values():
            assert value.const_value.nbytes <= 256 or isinstance(value.const_value, ir.ExternalTensor)


def test_all_sizes_but_widths_are_symbolic(base_folder):
    shapes = {value.name: value.shape for value in ir.load(base_folder / "decoder.onnx").graph.inputs}
    assert [str(size) for size in shapes["inputs_embeds"]] == ["batch", "sequence", "32"]
    assert [str(size) for size in shapes["past_key_values.0.key"]] == ["batch", "2", "past_sequence", "8"]


@pytest.mark.slow
def test_fp16_keeps_its_inputs_apart_and_stays_near(vlm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fp16") / "base"
    export_base(vlm, folder, "fp16")
    half = OnnxVLM.from_pretrained(folder)
    assert next(vlm.model.parameters()).dtype == torch.float32
    gap = compare_logits(vlm, half, parity_requests()["4 rows padded, mixed"], steps=4).logits
    assert gap.error <= 0.01 * gap.scale


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"vision_feature_layer": [-2, -1]}, {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}],
)
def test_feature_layers_and_selection_follow_the_configuration(make_checkpoint, tmp_path, options):
    import onnxruntime

    model = VLM.from_pretrained(make_checkpoint(tmp_path / "model", **options)).model
    graph = export_graph(graph_specs(model)["vision_encoder"], "fp32")
    ir.save(graph, tmp_path / "vision.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "vision.onnx"), providers=["CPUExecutionProvider"])
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = torch.stack(list(model.get_image_features(pixels).pooler_output)).numpy()
    found = session.run(None, {"pixel_values": pixels.numpy()})[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_other_architectures_are_refused_by_name_and_reason():
    with pytest.raises(UsageError, match=r"'mllama': its decoder attends across to the picture.*--base-onnx"):
        family_of(SimpleNamespace(model_type="mllama"))


def test_layers_of_an_unknown_kind_are_refused(vlm):
    text = SimpleNamespace(model_type="llama4_text", layer_types=["chunked_attention", "full_attention"])
    config = SimpleNamespace(model_type="llava", get_text_config=lambda: text)
    with pytest.raises(UsageError, match="of kind chunked_attention"):
        family_of(config)


def test_a_failed_export_leaves_nothing_behind(vlm, tmp_path, monkeypatch):
    def broken(*_args):
        raise RuntimeError("no")

    monkeypatch.setattr("safetykit.export.base.own.copy_configuration", broken)
    monkeypatch.setattr(
        "safetykit.export.base.own.export_graph", lambda *_args: ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    )
    with pytest.raises(RuntimeError):
        export_base(vlm, tmp_path / "out")
    assert not list(tmp_path.iterdir())
