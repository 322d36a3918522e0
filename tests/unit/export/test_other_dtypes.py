"""Exports of checkpoints in bfloat16 are compared with what their weights are, in float32."""

import json
from dataclasses import replace

import pytest
import torch

from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import ParityFailed, UsageError
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.export.commands.verification import verify_folder
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.tolerances import TOLERANCES, tolerances_of
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM

REFERENCE = data_path("reference")
slow = pytest.mark.slow  # whole exports with parity


@pytest.fixture(scope="module")
def narrow(bf16_checkpoint):
    return VLM.from_pretrained(bf16_checkpoint)


@pytest.fixture(scope="module")
def guard(narrow):
    records = [one for split in ("fit", "calibration") for one in subset(load_records(REFERENCE, [split]), 16)]
    return VLMGuard(variant="steer", layers=(2,), rank=1, alpha=4.0, allow_constant_gate=True).fit(narrow, records)


def test_what_a_fit_ran_in_is_in_its_manifest(guard):
    assert guard.info.base.ran.dtype == "bfloat16"


@slow
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.exhaustive)])
def test_a_checkpoint_in_bfloat16_exports_with_all_defaults(bf16_checkpoint, guard, precision, tmp_path):
    result = export_onnx(bf16_checkpoint, [guard], tmp_path / "export", precision=precision)
    report = json.loads((result.folder / "parity.json").read_text())
    assert report["reference"] == {"device": "cpu", "dtype": "float32", "weights": "bfloat16"}
    assert report["tolerances"] == TOLERANCES[precision].model_dump(mode="json")
    checked = verify_folder(result.folder, str(bf16_checkpoint), [guard.save(tmp_path / "guard")])
    assert checked["parity"]["passed"]


@slow
def test_a_loaded_model_in_bfloat16_exports_and_is_left_in_it(narrow, guard, tmp_path):
    before = narrow.prefill([Request("what is this ?")])[0]
    assert export_onnx(narrow, [guard], tmp_path / "export").parity.passed
    assert narrow.dtype == narrow.model.dtype == torch.bfloat16
    assert torch.equal(narrow.prefill([Request("what is this ?")])[0], before)


@slow
def test_updates_of_weights_in_bfloat16_are_not_rounded_to_it(narrow, guard, tmp_path):
    name = next(name for name, _ in narrow.model.named_parameters() if name.endswith("layers.1.mlp.down_proj.weight"))
    rows, columns = narrow.model.get_parameter(name).shape
    generator = torch.Generator().manual_seed(0)
    factors = {
        "up": torch.randn(rows, 1, generator=generator) / 9,
        "down": torch.randn(1, columns, generator=generator),
    }
    updated = replace(guard, updates=(WeightUpdate(name, factors),))
    assert export_onnx(narrow.path, [updated], tmp_path / "export").parity.passed


@slow
def test_pytorch_in_bfloat16_is_given_more_room_and_named_where_it_fails(narrow, bf16_checkpoint, tmp_path):
    result = export_onnx(bf16_checkpoint, [], tmp_path / "export", dtype="bfloat16")
    onnx_vlm = OnnxVLM.from_pretrained(result.folder)
    assert result.parity.reference.dtype == "bfloat16"
    assert tolerances_of(onnx_vlm, torch.bfloat16).logits.relative > tolerances_of(onnx_vlm).logits.relative
    report = check_parity(narrow, onnx_vlm, [], base=onnx_vlm, steps=1)
    strict = report.model_copy(
        update={"checks": tuple(one.model_copy(update={"passed": False}) for one in report.checks), "passed": False}
    )
    with pytest.raises(ParityFailed, match="PyTorch computed in bfloat16 on cpu, from weights in bfloat16; the graphs"):
        strict.require()


def test_a_loaded_model_takes_no_option_of_loading(narrow, tmp_path):
    with pytest.raises(UsageError, match="dtype does nothing without a model's name"):
        export_onnx(narrow, [], tmp_path / "export", dtype="float32")
