"""Fits on a graph's own weights: what they read, what they record, and where they may go."""

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch

from safetykit.adapters.artifact.manifest import GraphWeights
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.artifact.store import load_adapter
from safetykit.adapters.errors import UsageError, WrongBase
from safetykit.export.base.fitted_on import weights_of
from safetykit.export.base.matrices import matrix_of
from safetykit.export.manifest import LAYOUT, read_manifest
from safetykit.export.parity.graph_base import GraphBase
from safetykit.export.parity.report import Flip, ParityReport, attributed, judged_flips
from safetykit.export.pipeline.export import export_onnx
from safetykit.toolkit.data.records import Record
from safetykit.toolkit.model.requests import Request

GUARD = ("GatedSteering", "decoder.layers.1", "last", "prefill")
OTHER = GraphWeights(precision="int4", sha256="0" * 64)


def records(count: int = 6) -> list[Record]:
    words = ["what is this thing ?", "describe it .", "is this dangerous ?"]
    return [
        Record(
            id=str(at),
            prompt=" ".join(words[at % 3 :]),
            label=("harmful", "harmless")[at % 2],
            split=("test", "calibration")[at % 4 == 3],
            response="so",
        )
        for at in range(count)
    ]


@pytest.fixture(scope="module")
def base(int4_folder) -> GraphBase:
    return GraphBase.read(int4_folder)


@pytest.fixture(scope="module")
def on(base, make_adapter):
    """An adapter of the kind that a fit on the graph makes."""

    def make(weights: GraphWeights | None = None):
        adapter = make_adapter(GUARD)
        told = adapter.info.base.model_copy(update={"on": weights or base.weights})
        return dataclasses.replace(adapter, info=adapter.info.model_copy(update={"base": told}))

    return make


def test_the_model_runs_with_the_weights_that_the_graph_multiplies_with(vlm, base):
    before = vlm.parts.head.weight
    graph = ir.load(base.folder / LAYOUT.decoder).graph
    head = next(node for node in graph if node.outputs[0].name == "logits")
    with base.held(vlm):
        assert np.array_equal(vlm.parts.head.weight.numpy(), matrix_of(head).rows().values)
        assert vlm.base.on == base.weights and vlm.base.fingerprint == base.manifest.base.fingerprint
    assert vlm.parts.head.weight is before and vlm.base.on is None


def test_what_a_fit_stood_on_is_kept_in_the_adapter(vlm, base, on, tmp_path):
    adapter = load_adapter(on().save(tmp_path / "adapter"))
    assert adapter.info.base.on == base.weights == weights_of([adapter.info])
    assert base.weights.sha256 == read_manifest(base.folder).files[LAYOUT.data("decoder")]


def test_an_adapter_runs_in_pytorch_only_with_the_weights_it_was_fitted_on(vlm, base, on, make_adapter):
    with pytest.raises(WrongBase, match="its own weights.*--allow-wrong-base"), vlm.applied(on()):
        pass
    with base.held(vlm):
        with vlm.applied(on(), make_adapter(GUARD)):
            pass
        with pytest.raises(WrongBase, match="runs with the int4 weights"), vlm.applied(on(OTHER)):
            pass
    with vlm.applied(on(), allow_wrong_base=True):
        pass


@pytest.fixture(scope="module")
def exported(vlm, base, on, tmp_path_factory):
    """An export with thresholds set again, and its result."""
    out = tmp_path_factory.mktemp("on") / "out"
    options = {"precision": "int4", "base_onnx": base.folder, "recalibrate": True}
    return export_onnx(vlm, [on()], out, records=records(), max_new_tokens=2, **options)


@pytest.mark.slow
def test_an_export_is_compared_with_pytorch_on_the_graphs_weights(vlm, base, on, exported):
    request = Request(records()[0].prompt)
    ours, _ = exported.decisions
    (change,) = exported.manifest.recalibrated
    with base.held(vlm), vlm.applied(on()) as hooks:
        vlm.prefill([request])
        held = hooks.extras["0.score"].item()
    with vlm.applied(on(), allow_wrong_base=True) as hooks:
        vlm.prefill([request])
    assert ours[0].scores["0.score"] == pytest.approx(held, abs=1e-5)
    assert abs(hooks.extras["0.score"].item() - held) > 1e-4
    assert change.wanted == change.above and vlm.on is None
    assert exported.manifest.adapters[0].base.on == base.weights


def test_report_and_card_count_the_adapters_flips_and_those_of_rounding(exported):
    counts = ParityReport.read(exported.folder / LAYOUT.parity).flipped
    assert counts == exported.parity.flipped and counts.records == len(exported.decisions[0])
    card, report = ((exported.folder / name).read_text() for name in (LAYOUT.card, LAYOUT.report))
    assert "which are this export's" in card
    for text in (card, report):
        assert "are the adapters'" in text and f"unmodified model on {counts.unmodified}" in text


def test_graphs_with_other_weights_are_refused(vlm, base_folder, int4_folder, on, tmp_path):
    for folder, precision in ((base_folder, "fp32"), (int4_folder, "int4")):
        with pytest.raises(WrongBase, match="fitted on .*int4 weights"):
            export_onnx(vlm, [on(OTHER)], tmp_path / "out", precision=precision, base_onnx=folder)
    with pytest.raises(WrongBase, match="several graphs.*--on the same base"):
        export_onnx(vlm, [on(OTHER), on()], tmp_path / "out", precision="int4", base_onnx=int4_folder)
    assert not (tmp_path / "out").exists()


def test_only_quantised_graphs_without_an_adapter_are_stood_on(base_folder, exported):
    with pytest.raises(UsageError, match="fp32: their weights are the checkpoint's"):
        GraphBase.read(base_folder)
    with pytest.raises(UsageError, match="hold an adapter"):
        GraphBase.read(exported.folder)


def test_a_flip_is_the_adapters_where_the_unmodified_model_does_not_flip():
    def flip(name: str, what: str = "outcome") -> Flip:
        return Flip(id=name, what=what, pytorch="refused", onnx="answered", margin=None)

    with_adapter = [flip("a"), flip("b"), flip("b", "0.score"), flip("c", "risk")]
    flips, counts = attributed(with_adapter, [flip("b"), flip("d")], 10)
    assert counts.model_dump() == {"records": 10, "unmodified": 2, "all": 3, "adapters": 2}
    assert [(one.id, one.unmodified) for one in flips] == [("a", False), ("b", True), ("b", True), ("c", False)]
    check = judged_flips(flips, 10, 0.2)
    assert (check.error, check.limit, check.passed) == (2, 2, True) and not judged_flips(flips, 10, 0.1).passed


def test_a_fit_reads_the_states_of_the_rounded_model(vlm, base):
    units = [[record] for record in records()]
    (_, plain), *_ = vlm.states(units, [Site.block(1)])
    with base.held(vlm):
        (_, rounded), *_ = vlm.states(units, [Site.block(1)])
    assert not torch.allclose(plain[Site.block(1)], rounded[Site.block(1)], atol=1e-3)
