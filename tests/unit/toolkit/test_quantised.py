"""Quantised checkpoints: what they are is said without a package, what cannot be done before anything is loaded."""

import json
from importlib.util import find_spec

import pytest
import torch
from tiny_llava import vlm  # noqa: F401

from safetykit.adapters.errors import UsageError
from safetykit.bench.zoo.kinds import KINDS, bitsandbytes
from safetykit.export.pipeline.export import export_onnx
from safetykit.toolkit.commands.inspect import describe
from safetykit.toolkit.model import quantised
from safetykit.toolkit.model.quantised import Quantisation, quantisation_of
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

PROMPT = [Request("what is this ?")]
has_bitsandbytes = pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
has_compressed = pytest.mark.skipif(not find_spec("compressed_tensors"), reason="compressed-tensors is not installed")


@pytest.fixture(scope="module")
def made(vlm, tmp_path_factory):  # noqa: F811
    """``made(kind)``: the tiny checkpoint of that kind."""
    found = {}

    def make(kind):
        if kind not in found:
            found[kind] = KINDS[kind](vlm.path, tmp_path_factory.mktemp("kinds") / "checkpoint")
        return found[kind]

    return make


@pytest.fixture
def nothing_installed(monkeypatch):
    monkeypatch.setattr(quantised, "_installed", lambda package: False)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("GPTQ", "GPTQ 4 bits"),
        ("AWQ", "AWQ 4 bits"),
        ("compressed-tensors", "compressed-tensors pack-quantized"),
        ("FP8", "FP8"),
    ],
)
def test_inspect_needs_no_package_and_counts_what_was_quantised(made, vlm, kind, said, nothing_installed):  # noqa: F811
    found = describe(str(made(kind)))
    assert found["quantised"] == said
    assert found["parameters"] == vlm.describe()["parameters"] and vlm.describe()["quantised"] is None
    assert found["sites"] == vlm.describe()["sites"]


@pytest.mark.parametrize(
    ("kind", "packages"),
    [
        ("GPTQ", "optimum and gptqmodel are not installed. pip install optimum gptqmodel;"),
        ("AWQ", "gptqmodel is not installed. pip install gptqmodel;"),
        ("compressed-tensors", "compressed-tensors is not installed. pip install compressed-tensors;"),
    ],
)
def test_a_missing_package_is_named_before_anything_loads(made, kind, packages, nothing_installed):
    with pytest.raises(UsageError, match=packages):
        VLM.from_pretrained(made(kind))


@pytest.mark.parametrize("kind", ["GPTQ", "AWQ"])
def test_an_export_of_weights_that_cannot_be_made_plain_is_refused_in_the_plan(made, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(quantised, "_installed", lambda package: True)
    with pytest.raises(UsageError, match=f"{kind} 4 bits, whose weights are not exported here.*GenAI.* --base-onnx"):
        export_onnx(made(kind), [], tmp_path / "out")


def test_an_export_names_the_missing_package_in_the_plan(made, tmp_path, nothing_installed):
    with pytest.raises(UsageError, match="pip install compressed-tensors"):
        export_onnx(made("compressed-tensors"), [], tmp_path / "out")


def require_plain(folder):
    """Made plain, a model answers as it does quantised."""
    loaded, plain = VLM.from_pretrained(folder), VLM.without_weights(folder)
    assert {one.dtype for one in plain.model.parameters()} == {torch.float32}
    assert all(type(one) is torch.nn.Linear for one in plain.model.modules() if "Linear" in type(one).__name__)
    assert plain.fingerprint == loaded.fingerprint
    mine, theirs = plain.prefill(PROMPT)[0], loaded.prefill(PROMPT)[0]
    assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_fp8_is_plain_without_a_gpu(made, vlm):  # noqa: F811
    require_plain(made("FP8"))
    wanted = vlm.parts.layers[0].self_attn.q_proj.weight
    found = VLM.without_weights(made("FP8")).parts.layers[0].self_attn.q_proj.weight
    assert not torch.equal(found, wanted) and torch.allclose(found, wanted, rtol=2**-3, atol=1e-2)


@has_compressed
def test_compressed_tensors_are_made_plain(made):
    require_plain(made("compressed-tensors"))


@has_bitsandbytes
def test_bitsandbytes_are_made_plain_and_counted(made, vlm):  # noqa: F811
    require_plain(made("bitsandbytes nf4"))
    assert VLM.from_pretrained(made("bitsandbytes nf4")).describe()["parameters"] == vlm.describe()["parameters"]


@has_bitsandbytes
def test_bitsandbytes_of_8_bits_rounds_activations_besides(vlm, tmp_path):  # noqa: F811
    folder = bitsandbytes(vlm.path, tmp_path / "int8", load_in_8bit=True)
    plain, wanted = VLM.without_weights(folder), vlm.parts.layers[0].self_attn.q_proj.weight
    assert torch.allclose(plain.parts.layers[0].self_attn.q_proj.weight, wanted, atol=float(wanted.abs().max()) / 127)


@pytest.mark.slow
def test_an_export_holds_the_plain_weights(made, tmp_path):
    assert export_onnx(made("FP8"), [], tmp_path / "out").parity.passed


class Config:
    def __init__(self, **given):
        self.quantization_config = given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes int8"),
        ({"quant_method": "quark"}, "quark"),
        ({"surprise": 1}, "an unknown method"),
    ],
)
def test_the_kind_is_read_from_the_configuration(given, said):
    assert str(quantisation_of(Config(**given))) == said


def test_what_is_not_known_is_refused_for_an_export():
    with pytest.raises(UsageError, match="by surprise, whose weights are not exported here"):
        quantised.require_plain(Config(quant_method="surprise"), "FOLDER")
    assert Quantisation("surprise", "").missing() == []
    quantised.require_plain(Config(), "FOLDER")
    assert quantisation_of(json) is None
