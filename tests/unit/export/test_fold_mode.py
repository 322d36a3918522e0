"""Folding through the whole export: no node, the same logits as the hooks, and a manifest that says so."""

import onnx_ir as ir
import pytest

from safetykit.adapters.errors import UsageError
from safetykit.export.manifest import GRAPHS, LAYOUT
from safetykit.export.pipeline.export import export_onnx

AFFINE = (
    ("SubspaceProjection", "decoder.layers.0.mlp", "all", "both"),
    ("SubspaceProjection", "decoder.layers.2.mlp", "all", "both"),
)


@pytest.fixture(scope="module")
def folded(vlm, base_folder, make_adapter, tmp_path_factory):
    out = tmp_path_factory.mktemp("fold") / "out"
    return export_onnx(vlm, [make_adapter(*AFFINE, rank=4)], out, mode="fold", base_onnx=base_folder)


@pytest.mark.slow
def test_no_node_is_added_and_the_base_weights_stay(folded, base_folder):
    before, after = (ir.load(folder / LAYOUT.decoder) for folder in (base_folder, folded.folder))
    assert len(list(after.graph)) == len(list(before.graph))
    for name in GRAPHS:
        data = LAYOUT.data(name)
        assert (folded.folder / data).read_bytes() == (base_folder / data).read_bytes()


def test_the_folded_graph_equals_the_hooks(folded):
    checks = [check for check in folded.parity.checks if check.kind == "fold"]
    assert len(checks) == 6
    assert all(check.passed for check in checks)
    off = folded.parity.worst("adapter-off")
    assert folded.parity.worst("fold") < 100 * max(off, 1e-7)


def test_the_manifest_names_the_weights(folded):
    manifest = folded.manifest
    assert (manifest.mode, manifest.interventions) == ("fold", ())
    assert [name.rpartition(".")[2] for name in manifest.updates] == ["weight", "bias", "weight", "bias"]
    assert all("layers.0.mlp" in name or "layers.2.mlp" in name for name in manifest.updates)


def test_a_folded_graph_is_no_base(vlm, folded, make_adapter, tmp_path):
    with pytest.raises(UsageError, match="hold an adapter already"):
        export_onnx(vlm, [make_adapter(*AFFINE)], tmp_path / "out", base_onnx=folded.folder)
