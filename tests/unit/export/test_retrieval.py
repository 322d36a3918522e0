"""Retrieval in an export: the graph finds what NumPy and FAISS find, and its texts stand before the prompt."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from PIL import Image
from planted_captions import planted_index

from safetykit.adapters import Adapter, Intervention, InvalidArtifact, Site, UsageError
from safetykit.export.manifest import read_manifest, write_manifest
from safetykit.export.parity.compare import compare_logits
from safetykit.export.parity.exposed import require_movement
from safetykit.export.parity.retrieval_checks import check_retrieval, require_response
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.answer import answer
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.surgery.adapt import adapt, copy_base, place
from safetykit.export.surgery.retrieval import open_retriever, write_captions
from safetykit.toolkit.data.captions import CaptionedPicture
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.retrieval.fit import fit_retrieval, picture_query_of

TEXTS = [f"{a} {b} {c} ." for a in ("what", "describe", "is") for b in ("this", "it", "one") for c in ("thing", "use")]
CPU = ["CPUExecutionProvider"]


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


MIXED = [
    Request("what is in the picture ?", picture(0)),
    Request("how to use this thing ?"),
    Request("describe it .", picture(3)),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return planted_index(tmp_path_factory.mktemp("index") / "index", TEXTS)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("pictures"), []
    for seed in range(24):
        picture(seed).save(folder / f"{seed}.png")
        item = CaptionedPicture(id=str(seed), caption=TEXTS[seed % 12], image=f"{seed}.png")
        item._folder = folder
        found.append(item)
    return found


@pytest.fixture
def exported(vlm, base_folder, tmp_path):
    """``exported(*adapters, index=None)``: an adapted copy of the base, opened."""

    def run(*adapters, index=None):
        base, folder = read_manifest(base_folder), tmp_path / "export"
        folder.mkdir()
        copy_base(base_folder, folder, base)
        manifest = adapt(folder, base, adapters)
        require_movement(folder, manifest, place(adapters))
        require_response(folder, manifest, place(adapters))
        return OnnxVLM(folder, manifest, vlm.inputs, CPU, index=index)

    return run


def pixels(vlm, requests):
    return vlm.inputs.prepare(requests).pictures


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_graph_finds_what_numpy_and_faiss_find(vlm, exported, captioned, tmp_path, dtype):
    index = planted_index(tmp_path / "index", TEXTS, dtype=dtype)
    adapter = fit_retrieval(vlm, index, captioned, k=5)
    model = exported(adapter)
    seen = model.see(pixels(vlm, [Request(".", picture(seed)) for seed in range(40)]))
    queries = np.concatenate([picture_query_of(vlm, adapter, picture(seed)) for seed in range(40)])
    for search in (index.search, index.faiss().search):
        ids, scores = search(queries, 5)
        assert np.array_equal(seen.extras["retrieved_ids"], ids)
        assert np.allclose(seen.extras["retrieved_scores"], scores, atol=1e-5)
    assert seen.extras["retrieved_ids"].dtype == np.int64


def test_equal_scores_go_to_the_lower_id_in_the_graph_too(vlm, exported, captioned, tmp_path):
    texts = [f"{at}|same" if at % 3 else f"{at}" for at in range(200)] + TEXTS
    index = planted_index(tmp_path / "index", texts)
    adapter = fit_retrieval(vlm, index, captioned, k=40)
    seen = exported(adapter).see(pixels(vlm, [Request(".", picture(seed)) for seed in range(8)]))
    queries = np.concatenate([picture_query_of(vlm, adapter, picture(seed)) for seed in range(8)])
    assert np.array_equal(seen.extras["retrieved_ids"], index.search(queries, 40)[0])
    same = [at for at in range(200) if at % 3]
    for row in seen.extras["retrieved_ids"].tolist():
        found = [at for at in row if at in same]
        assert found == same[: len(found)]


def test_retrieval_is_one_node_and_leaves_features_and_weights_alone(vlm, exported, base_folder, index, captioned):
    model = exported(fit_retrieval(vlm, index, captioned))
    graph = ir.load(model.path / "vision_encoder.onnx").graph
    ours = [node.op_type for node in graph if node.domain == "safetykit"]
    assert ours == ["ScopeMask_all_both", "RetrieveTopK"]
    assert [value.name for value in graph.outputs] == ["image_features", "retrieved_ids", "retrieved_scores"]
    onnx.checker.check_model(str(model.path / "vision_encoder.onnx"))
    base = onnxruntime.InferenceSession(base_folder / "vision_encoder.onnx")
    feeds = dict(pixels(vlm, MIXED))
    assert np.array_equal(base.run(None, feeds)[0], model.see(feeds).features)
    for name in ("vision_encoder.onnx.data", "decoder.onnx", "decoder.onnx.data"):
        assert (model.path / name).read_bytes() == (base_folder / name).read_bytes()


def test_keys_lie_beside_the_graph_and_are_not_in_it(vlm, exported, captioned, tmp_path):
    texts = [f"text {at}" for at in range(20_000)] + TEXTS
    model = exported(fit_retrieval(vlm, planted_index(tmp_path / "index", texts), captioned))
    assert (model.path / "vision_encoder.adapter.data").stat().st_size >= 20_000 * 24 * 4
    assert (model.path / "vision_encoder.onnx").stat().st_size < 100_000


def test_a_correction_matches_pytorch(vlm, exported, index, captioned):
    adapter = fit_retrieval(vlm, index, captioned, correction=0.7)
    model = exported(adapter)
    bare = compare_logits(vlm, model, MIXED, 3).logits
    with vlm.applied(adapter) as hooks:
        gap = compare_logits(vlm, model, MIXED, 3, hooks)
    assert gap.logits.error <= 1e-5 + 2e-6 * gap.logits.scale < bare.error
    assert gap.scores["retrieved_scores"].error < 1e-5 and gap.scores["retrieved_scores"].count == 6


def test_a_prefix_matches_pytorch(vlm, exported, index, captioned):
    adapter = fit_retrieval(vlm, index, captioned, k=2, prefix=True)
    model = exported(adapter)
    with vlm.applied(adapter):
        gap = compare_logits(vlm, model, MIXED, 3).logits
        wanted = vlm.generate(MIXED, 6)
        tokens = vlm.prepare(MIXED).input_ids
    assert gap.error <= 1e-5 + 2e-6 * gap.scale
    assert [one.token_ids for one in model.generate(MIXED, 6)] == [one.token_ids for one in wanted]
    texts = model.retrieved([picture(0)])[0]
    ids, _ = index.search(picture_query_of(vlm, adapter, picture(0)), 2)
    assert texts == tuple(index[at] for at in ids[0])
    assert " ".join(texts) in vlm.inputs.tokenizer.decode(tokens[0])


def test_a_request_may_bring_its_own_texts(vlm, exported, index, captioned):
    model = exported(fit_retrieval(vlm, index, captioned, k=1, prefix=True))
    mine = Request("what is this ?", picture(1), retrieved=("describe it .",))
    alone = model.prefill(vlm.inputs.prepare([mine])).logits[0, -1]
    both = model.prefill_requests([mine, Request("what is this ?", picture(0))]).logits[0, -1]
    assert np.allclose(alone, both, atol=1e-4)
    assert model.generate([mine], 4)[0].token_ids == model.generate([mine, MIXED[0]], 4)[0].token_ids


def test_an_external_index_gives_the_same_answers(vlm, exported, index, captioned, base_folder, tmp_path):
    outside = fit_retrieval(vlm, index, captioned, k=2, prefix=True, external=True)
    model = exported(outside, index=index)
    assert model.see(pixels(vlm, MIXED)).extras.keys() == {"retrieval_query"}
    assert not (model.path / "captions.jsonl").exists()
    with vlm.applied(fit_retrieval(vlm, index, captioned, k=2, prefix=True)):
        wanted = vlm.generate(MIXED, 5)
    assert [one.token_ids for one in model.generate(MIXED, 5)] == [one.token_ids for one in wanted]


def test_an_external_index_is_asked_for_and_checked(vlm, exported, index, captioned, tmp_path):
    outside = fit_retrieval(vlm, index, captioned, prefix=True, external=True)
    with pytest.raises(UsageError, match=r"needs its index of 18 texts.*--external-index"):
        exported(outside)
    info = read_manifest(tmp_path / "export").retrieval
    other = planted_index(tmp_path / "other", TEXTS[:5])
    with pytest.raises(UsageError, match="is not the one the query was fitted on"):
        open_retriever(tmp_path / "export", info, other)
    assert open_retriever(tmp_path / "export", info, index.folder).info == info
    with pytest.raises(UsageError, match="retrieves nothing.*--external-index"):
        open_retriever(tmp_path / "export", None, index)
    write_captions(tmp_path, TEXTS)
    with pytest.raises(UsageError, match="searches its own index"):
        open_retriever(tmp_path, info.model_copy(update={"external": False}), index)


def test_a_query_alone_needs_no_index_until_it_is_searched(vlm, exported, index, captioned):
    model = exported(fit_retrieval(vlm, index, captioned, external=True))
    assert model.generate(MIXED, 2)
    with pytest.raises(UsageError, match="gives a query only.*--external-index"):
        model.retrieved([picture(0)])


def test_damaged_captions_are_refused(vlm, exported, index, captioned):
    model = exported(fit_retrieval(vlm, index, captioned))
    path, info = model.path / "captions.jsonl", model.manifest.retrieval
    lines = path.read_text().splitlines()
    assert [json.loads(line)["caption"] for line in lines] == TEXTS
    for text in ("\n".join(lines[:-1]), "[1]\n" * 18, '{"caption": 3}\n' * 18, "{"):
        path.write_text(text)
        with pytest.raises(InvalidArtifact, match="captions.jsonl does not hold"):
            open_retriever(model.path, info)
        with pytest.raises(InvalidArtifact, match="captions.jsonl was changed"):
            OnnxVLM.from_pretrained(model.path)
    path.unlink()
    with pytest.raises(InvalidArtifact, match="captions.jsonl is missing"):
        open_retriever(model.path, info)


def test_the_check_passes_a_right_graph_and_catches_wrong_ones(vlm, exported, index, captioned):
    adapter = fit_retrieval(vlm, index, captioned, k=3)
    model, placed = exported(adapter), place([adapter])
    (_, gap), *rest = check_retrieval(model.path, model.manifest, placed)
    assert gap.error < 2e-5 and gap.count > 0 and not rest
    for spoil in ("keys", "query_weight", "query_bias"):
        tensors = dict(adapter.interventions[0].tensors)
        tensors[spoil] = tensors[spoil].roll(1, 0)
        item = Intervention("RetrieveTopK", Site("projector"), "all", "prefill", tensors)
        (_, gap), *_ = check_retrieval(model.path, model.manifest, place([Adapter(adapter.info, (item,))]))
        assert gap.error > 1e-2, spoil


def test_ids_that_are_shifted_by_one_are_caught(vlm, exported, index, captioned):
    adapter = fit_retrieval(vlm, index, captioned, k=3)
    model = exported(adapter)
    graph = ir.load(model.path / "vision_encoder.onnx")
    call = next(node for node in graph.graph if node.op_type == "RetrieveTopK")
    function = graph.functions[call.op_identifier()]
    # in the function, ids one too high: scores stay right
    at = next(i for i, value in enumerate(function.outputs) if value.dtype == ir.DataType.INT64)
    one = ir.node("Constant", [], {"value": ir.tensor(np.array(1, np.int64))})
    count = ir.node("Constant", [], {"value": ir.tensor(np.array(len(TEXTS), np.int64))})
    add = ir.node("Add", [function.outputs[at], one.outputs[0]])
    mod = ir.node("Mod", [add.outputs[0], count.outputs[0]])
    function.extend([one, count, add, mod])
    function.outputs[at] = mod.outputs[0]
    ir.save(graph, model.path / "vision_encoder.onnx")
    (_, gap), *_ = check_retrieval(model.path, model.manifest, place([adapter]))
    assert gap.error > 1e-2


def test_a_query_that_never_changes_is_refused(vlm, exported, index, captioned):
    adapter = fit_retrieval(vlm, index, captioned)
    tensors = dict(adapter.interventions[0].tensors)
    tensors["query_weight"] = torch.zeros_like(tensors["query_weight"])
    item = Intervention("RetrieveTopK", Site("projector"), "all", "prefill", tensors)
    with pytest.raises(UsageError, match="retrieves the same whatever the picture"):
        exported(Adapter(adapter.info, (item,), adapter.attachments))


def test_two_retrievals_in_one_export_are_refused(vlm, exported, index, captioned):
    adapter = fit_retrieval(vlm, index, captioned)
    bare = Adapter(adapter.info, adapter.interventions)  # without its attachments, the graph still has one name each
    with pytest.raises(UsageError, match="Two ops give an output 'retrieved_ids'"):
        exported(adapter, bare)


def test_a_corrected_projector_is_what_retrieval_reads(vlm, exported, index, captioned, make_adapter):
    first = make_adapter(("SubspaceProjection", "projector", "all", "both"))
    with vlm.applied(first):
        second = fit_retrieval(vlm, index, captioned)
    model = exported(first, second)
    with vlm.applied(first, second) as hooks:
        vlm.prefill(MIXED)
        wanted = hooks.extras["retrieved_scores"].numpy()
    assert np.allclose(model.see(pixels(vlm, MIXED)).extras["retrieved_scores"], wanted, atol=1e-5)


def test_answers_name_what_was_retrieved(vlm, exported, index, captioned, tmp_path):
    model = exported(fit_retrieval(vlm, index, captioned, k=2))
    write_manifest(model.manifest, model.path)
    picture(2).save(tmp_path / "p.png")
    (found,) = answer(model.path, ["what is this ?"], [tmp_path / "p.png"], max_new_tokens=2)
    assert found["retrieved"] == list(model.retrieved([picture(2)])[0])


def test_running_needs_no_torch(vlm, exported, index, captioned):
    model = exported(fit_retrieval(vlm, index, captioned, prefix=True))
    code = (
        "import sys; from safetykit.export.runtime.onnx_vlm import OnnxVLM\n"
        "from safetykit.export.surgery.retrieval import open_retriever\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert model.retriever.info.prefix


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"correction": 0.5}, {"prefix": True, "k": 2}, {"external": True, "prefix": True}])
def test_the_whole_export_passes_its_gate(vlm, base_folder, index, captioned, tmp_path, options):
    adapter = fit_retrieval(vlm, index, captioned, **options)
    vlm.index = index if options.get("external") else None
    try:
        result = export_onnx(vlm, [adapter], tmp_path / "out", base_onnx=base_folder)
    finally:
        vlm.index = None
    kinds = [check.kind for check in result.parity.checks]
    assert result.parity.passed and "retrieval" in kinds
    name = "retrieval_query" if options.get("external") else "retrieved_scores"
    assert any(name in check.case for check in result.parity.checks if check.kind == "scores")
    index_folder = index.folder if options.get("external") else None
    again = OnnxVLM.from_pretrained(tmp_path / "out", index=index_folder)
    assert len(again.generate(MIXED, 3)) == 3


@pytest.mark.slow
def test_half_precision_retrieves_with_its_own_states(vlm, index, captioned, tmp_path):
    result = export_onnx(
        vlm, [fit_retrieval(vlm, index, captioned, correction=0.5)], tmp_path / "out", precision="fp16"
    )
    assert result.parity.passed and result.parity.worst("retrieval") < 1e-4
    shutil.rmtree(tmp_path / "out")
