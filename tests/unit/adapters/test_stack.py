"""A detector runs beside the correctors it was fitted under, or is refused with the command that fits the right one."""

import dataclasses
import re

import pytest
import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.intervention import Intervention
from safetykit.adapters.artifact.manifest import AdapterInfo, BaseInfo, DataInfo, DetectorInfo
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.artifact.stack import describe_corrector, require_fitted_stack
from safetykit.adapters.artifact.store import manifest_digest
from safetykit.adapters.errors import UsageError
from safetykit.adapters.ops.branch import Branch

WIDTH = 4
BASE = BaseInfo(fingerprint="a" * 64, architecture="X", n_layers=3, d_model=WIDTH)


def info(method: str, **hyperparameters) -> AdapterInfo:
    return AdapterInfo(
        method=method,
        variant="test",
        sign_convention="none",
        hyperparameters=hyperparameters,
        seed=None,
        base=BASE,
        data=DataInfo(sha256="0" * 64, counts={}),
        versions={},
    )


def corrector(amount: float = 1.0) -> Adapter:
    tensors = {"basis": torch.eye(WIDTH)[:, :1], "mean": torch.full((WIDTH,), amount), "beta": torch.tensor(1.0)}
    item = Intervention("SubspaceProjection", Site.block(1), "all", "both", tensors)
    return Adapter(info("vlm-guard"), (item,))


def detector(*correctors: Adapter) -> Adapter:
    branch = Branch(
        "FusedProjection", Site.block(0), Site.block(1), {"weight": torch.ones(WIDTH), "bias": torch.tensor(0.0)}
    )
    stated = DetectorInfo(threshold=0.0, refusal="no", refusal_token=1)
    return Adapter(
        info("sasa", corrected_by=[describe_corrector(one) for one in correctors]), branch=branch, detector=stated
    )


def observer() -> Adapter:
    tensors = {"query_weight": torch.eye(WIDTH), "query_bias": torch.zeros(WIDTH)}
    item = Intervention("RetrievalQuery", Site.parse("projector"), "vision", "prefill", tensors)
    return Adapter(info("retrieval"), (item,))


def test_the_digest_of_an_adapter_is_that_of_its_manifest_file(tmp_path):
    made = corrector()
    read = Adapter.load(made.save(tmp_path / "a"))
    assert manifest_digest(made) == manifest_digest(read) == read.read_as
    changed = dataclasses.replace(read, info=info("other"))
    assert changed.read_as is None and manifest_digest(changed) != manifest_digest(read)


@pytest.mark.parametrize(
    "stack",
    [
        [],
        [corrector()],
        [detector()],
        [corrector(), detector(corrector())],
        [detector(corrector()), corrector()],
        [corrector(1), corrector(2), detector(corrector(1), corrector(2))],
        [observer(), detector()],
        [observer(), detector(observer())],
    ],
)
def test_a_detector_beside_its_own_correctors_is_accepted(stack):
    assert require_fitted_stack(stack)


@pytest.mark.parametrize(
    ("stack", "names", "message", "step"),
    [
        (
            [corrector(), detector()],
            ["guard", "sasa"],
            r"fitted on the model without a corrector, and is to run beside vlm-guard \(guard\)",
            "safetykit fit sasa reference:mild --data reference --with guard -o DETECTOR",
        ),
        (
            [corrector(2), detector(corrector(1))],
            ["guard", "sasa"],
            r"corrected by vlm-guard \([0-9a-f]{12}\), and is to run beside vlm-guard \(guard\)",
            "--with guard -o DETECTOR",
        ),
        (
            [detector(corrector())],
            ["sasa"],
            "and is to run without a corrector",
            r"Put vlm-guard \([0-9a-f]{12}\) before it with --adapter, or fit the right one: "
            "safetykit fit sasa reference:mild --data reference -o DETECTOR",
        ),
        ([corrector(2), corrector(1), detector(corrector(1), corrector(2))], None, "beside", "--with ADAPTER --with"),
        ([corrector(1), detector(corrector(1), corrector(2))], None, "beside", "--with ADAPTER -o"),
    ],
)
def test_any_other_stack_is_refused_with_the_command_that_fits_it(stack, names, message, step):
    with pytest.raises(UsageError, match=message) as caught:
        require_fitted_stack(stack, names, model="reference:mild", data="reference")
    assert re.search(step, caught.value.next_step)
    assert "--allow-uncorrected-detector" in caught.value.next_step
    assert not require_fitted_stack(stack, allow=True)
