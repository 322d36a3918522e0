"""Parity with one of the two in memory at a time, on as many prompts as are asked for."""

import numpy as np
import onnxruntime
import pytest
import torch

from safetykit.adapters.errors import ParityFailed, UsageError
from safetykit.export.parity import check
from safetykit.export.parity.check import check_parity
from safetykit.export.parity.compare import compare_recorded, parity_requests
from safetykit.export.parity.gap import Gap
from safetykit.export.parity.recording import Store, record
from safetykit.export.runtime import graphs
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import open_session, sparing_memory
from safetykit.toolkit.model.vlm import VLM


@pytest.mark.parametrize(
    ("rows", "cases"),
    [
        (1, {"1 row, picture": 1}),
        (2, {"2 rows padded, mixed": 2}),
        (5, {"4 rows padded, mixed": 4, "1 row, text": 1}),
        (
            7,
            {
                "4 rows padded, mixed": 4,
                "1 row, text": 1,
                "1 row, picture": 1,
                "1 row, several pictures of other sizes": 1,
            },
        ),
        (99, {case: len(batch) for case, batch in parity_requests(several=True).items()}),
    ],
)
def test_a_budget_of_rows_is_spent_on_many_kinds(rows, cases):
    assert {case: len(batch) for case, batch in parity_requests(several=True, rows=rows).items()} == cases


@pytest.fixture
def bare(random_base):
    """The base export, with no session open."""
    opened = OnnxVLM.from_pretrained(random_base)
    return OnnxVLM(random_base, opened.manifest, opened.inputs, opened.providers, opened=False)


def test_model_and_graphs_are_never_in_memory_together(random_checkpoint, bare, monkeypatch):
    vlm, opened, recorded = VLM.without_weights(random_checkpoint), [], []

    def watched(source, *given, **options):
        opened.append(vlm.loaded)
        return open_session(source, *given, **options)

    def noted(*given):
        recorded.append((vlm.loaded, given[4]))
        return record_reference(*given)

    record_reference = check.record_reference
    monkeypatch.setattr(graphs, "open_session", watched)
    monkeypatch.setattr(check, "record_reference", noted)
    report = check_parity(vlm, bare, [], base=bare, steps=1, rows=2)
    assert report.passed and report.rows == 2 and report.reference.dtype == "float32"
    assert [one.case for one in report.checks] == ["2 rows padded, mixed"]
    assert opened == [False] * 3 and not vlm.loaded
    (loaded, folder), *others = recorded
    assert loaded and not folder.exists() and not others
    assert not {"_vision", "_embed", "_decoder"} & set(vars(bare))  # closed again


def test_a_model_of_which_nothing_is_known_is_asked_again_only_where_parity_fails(random_checkpoint, bare, monkeypatch):
    vlm = VLM.without_weights(random_checkpoint)
    asked = []
    monkeypatch.setattr(check, "own_rounding", lambda model, requests: asked.append((model.loaded, len(requests))))
    monkeypatch.setattr(check, "compare_recorded", spoilt)
    with pytest.raises(ParityFailed):
        check_parity(vlm, bare, [], base=bare, steps=0, rows=2).require()
    assert asked == [(True, 2)] and not vlm.loaded


def spoilt(recorded, *given):
    gap = compare_recorded(recorded, *given)
    return type(gap)(Gap(1.0, 1.0, 1), gap.scores)


def test_logits_are_mapped_from_files(random_vlm, tmp_path):
    requests = parity_requests()["4 rows padded, mixed"]
    kept, held = (record(random_vlm, requests, 2, store=store) for store in (Store(tmp_path), Store()))
    assert isinstance(kept.prompt, np.memmap) and isinstance(kept.steps, np.memmap)
    assert np.array_equal(kept.prompt, held.prompt) and np.array_equal(kept.steps, held.steps)
    assert len(list(tmp_path.iterdir())) == 2 and kept.steps.shape[:2] == (2, 4)


def test_weights_are_freed_and_come_back(bf16_checkpoint):
    vlm = VLM.without_weights(bf16_checkpoint)
    request = parity_requests()["1 row, text"]
    found = []
    with vlm.computing(torch.float32):
        for _ in range(2):
            with vlm.in_memory():
                weight = vlm.parts.head.weight
                assert vlm.loaded and weight.dtype == torch.float32
                found.append(vlm.prefill(request)[0])
            assert not vlm.loaded and weight.dtype == torch.bfloat16
    assert torch.equal(*found)
    whole = VLM.from_pretrained(bf16_checkpoint)
    with whole.in_memory():
        pass
    whole.unload()
    assert whole.loaded  # it belongs to the caller


def test_sparing_sessions_give_the_same_and_leave_weights_in_their_files(bare):
    batch = parity_requests()["4 rows padded, mixed"]
    with bare.in_use():
        usual = bare.prefill_requests(batch, all_logits=True).logits
    with sparing_memory(), bare.in_use():
        spared = bare.prefill_requests(batch, all_logits=True).logits
        options = bare._decoder._session.get_session_options()
        assert options.get_session_config_entry("session.disable_prepacking") == "1"
        assert options.execution_order == onnxruntime.ExecutionOrder.PRIORITY_BASED
    gap = Gap.between(usual, spared)
    assert 0 <= gap.error <= 1e-5 * gap.scale


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_a_gap_is_the_same_in_pieces(monkeypatch, piece):
    random = np.random.default_rng(0)
    one = random.standard_normal((3, 5, 7)).astype(np.float32)
    other = one + random.standard_normal(one.shape).astype(np.float32)
    whole = Gap.between(one, other)
    assert whole.error == np.abs(one.astype(np.float64) - other).max() and whole.scale == np.abs(one).max()
    monkeypatch.setattr("safetykit.export.parity.gap._PIECE", piece)
    assert Gap.between(one, other) == whole
    other[2, 4, 6] = np.nan
    assert np.isnan(Gap.between(one, other).error)
    assert Gap.between(one[:0], other[:0]) == Gap(0.0, 0.0, 0)


def test_sessions_keep_nothing_of_the_shapes_that_came(base_folder):
    """A server sees new ones for as long as it runs, and its memory grew with them."""
    assert not open_session(base_folder / "decoder.onnx").get_session_options().enable_mem_pattern


def test_an_answer_longer_than_the_model_takes_is_refused(vlm, base_folder):
    onnx_vlm = OnnxVLM.from_pretrained(base_folder)
    most = onnx_vlm.inputs.most_tokens
    for model in (vlm, onnx_vlm):
        with pytest.raises(UsageError, match=f"the model takes {most:,}"):
            model.generate("what is this ?", most + 1)
