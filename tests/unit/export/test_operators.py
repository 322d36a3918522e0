"""Operators that are translated as they were captured compute what they did decomposed; others are decomposed."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from safetykit.export.base.operators import TRANSLATIONS, to_onnx
from safetykit.export.base.tracing import quiet_export


def same(module, *inputs):
    """That ONNX Runtime computes what PyTorch does; returns whether the program was run a second time."""
    again, real = [], ExportedProgram.run_decompositions

    def counted(self, table):
        again.append(1)
        return real(self, table)

    with pytest.MonkeyPatch.context() as patch, quiet_export():
        patch.setattr(ExportedProgram, "run_decompositions", counted)
        program = to_onnx(module.eval(), inputs)
        assert ExportedProgram.run_decompositions is counted  # put back
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    feeds = {one.name: value.numpy() for one, value in zip(session.get_inputs(), inputs, strict=True)}
    (out,) = session.run(None, feeds)
    with torch.no_grad():
        expected = module(*inputs).numpy()
    assert out.dtype == expected.dtype
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    return bool(again)


class Logic(nn.Module):
    def forward(self, x, y):
        return ((x & y) | y).to(torch.float32)


class Casts(nn.Module):
    def forward(self, x):
        y = x.to(torch.float64).to("cpu", torch.float16)
        return torch.ops.aten.to.dtype_layout(y, dtype=torch.float32, layout=torch.strided)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64])
def test_logic_of_truths_and_of_bits(kind):
    x, y = (torch.randint(0, 2 if kind == torch.bool else 9, (3, 4)).to(kind) for _ in range(2))
    assert not same(Logic(), x, y)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": "valid", "stride": 2},
        {"padding": "same"},
        {"padding": "same", "dilation": (2, 1), "groups": 2},
        {"padding": "valid", "bias": False},
    ],
    ids=str,
)
def test_a_convolution_whose_padding_is_a_word(options):
    torch.manual_seed(0)
    assert not same(nn.Conv2d(4, 6, (4, 3), **options), torch.randn(2, 4, 9, 11))


def test_what_has_no_translation_after_all_is_decomposed(monkeypatch):
    """Not every operator that the exporter lacks is in its table of decompositions."""
    assert not same(Casts(), torch.randn(3, 4))
    monkeypatch.delitem(TRANSLATIONS, torch.ops.aten.to.dtype_layout)
    assert same(Casts(), torch.randn(3, 4))


class InPlace(nn.Module):
    def forward(self, x):
        y = x * 2
        y[:, 0] = 1
        return y


class Branches(nn.Module):
    def forward(self, x):
        with torch.enable_grad():
            return x * 2 + 1


@pytest.mark.parametrize("module", [InPlace(), Branches()], ids=lambda module: type(module).__name__)
def test_what_changes_its_input_or_holds_a_graph_is_decomposed(module):
    assert same(module, torch.randn(3, 4))
