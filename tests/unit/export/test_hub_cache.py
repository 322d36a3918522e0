"""Checkpoints, adapters, exports and base graphs in the Hub's cache work as plain folders do, by their ids too."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from foreign_folders import in_transformers_js
from hub_endpoint import hub
from huggingface_hub import HfApi, snapshot_download

from safetykit.adapters.errors import InvalidArtifact
from safetykit.bench.zoo.hub_cache import in_cache
from safetykit.export.commands.verification import verify_folder
from safetykit.export.foreign.files import load_graph, save_beside
from safetykit.export.layouts.prepare import program
from safetykit.export.manifest import LAYOUT, read_manifest
from safetykit.export.parity.graph_base import GraphBase
from safetykit.export.pipeline.export import export_onnx
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.model.vlm import VLM

ITEMS = (("TargetSteering", "decoder.layers.1", "last", "prefill"),)


@pytest.fixture(scope="module")
def cache(vlm, base_folder, int4_folder, make_adapter, tmp_path_factory):
    """A cache of a checkpoint, an adapter, base graphs in fp32 and int4, and an export that was made from ids alone."""
    folder = tmp_path_factory.mktemp("hub")
    cache = folder / "cache"
    make_adapter(*ITEMS).save(folder / "adapter")
    sources = {
        "org/model": vlm.path,
        "org/adapter": folder / "adapter",
        "org/base": base_folder,
        "org/int4": int4_folder,
    }
    for name, source in sources.items():
        in_cache(source, cache, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        export_onnx("org/model", ["org/adapter"], folder / "export", base_onnx="org/base")
        in_cache(folder / "export", cache, "org/export")
        yield cache


def listing(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.slow
def test_an_export_from_the_cache_verifies_and_runs(cache, requests):
    before = listing(cache)
    found = verify_folder("org/export", "org/model", ["org/adapter"], capturable=True)
    assert found["parity"]["passed"] and found["kind"] == "export, fp32"
    onnx_vlm = OnnxVLM.from_pretrained("org/export")
    assert len(onnx_vlm.generate(requests, 2)) == len(requests)
    assert listing(cache) == before  # nothing is written where it is only read


def test_an_adapter_and_an_export_are_pushed_and_pulled_with_the_hubs_own_calls(cache, requests, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with hub(tmp_path / "root") as url:
        api, pulled = HfApi(endpoint=url, token="hf_any"), {}
        for kind in ("adapter", "export"):
            api.create_repo(f"me/{kind}")
            api.upload_folder(repo_id=f"me/{kind}", folder_path=cache.parent / kind)
            pulled[kind] = Path(snapshot_download(f"me/{kind}", endpoint=url, cache_dir=tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert {path.name for path in pulled["export"].iterdir()} > {".gitattributes", LAYOUT.manifest, LAYOUT.card}
    assert verify_folder("me/adapter")["kind"] == "adapter"
    assert verify_folder("me/export")["card"] == "checked"
    text = OnnxVLM.from_pretrained("me/export").generate(requests[0], 4).text
    assert text == OnnxVLM.from_pretrained(cache.parent / "export").generate(requests[0], 4).text
    answered = program().Model(pulled["export"]).answer(requests[0].prompt, requests[0].pictures[0], 4)
    assert answered["text"] == text


def test_its_card_calls_the_base_by_its_id(cache):
    card = (cache.parent / "export" / LAYOUT.card).read_text()
    assert "base_model: org/model" in card


def test_a_model_can_stand_on_rounded_graphs_in_the_cache(cache, int4_folder):
    vlm = VLM.from_pretrained("org/model")
    graphs, plain = GraphBase.read("org/int4"), GraphBase.read(int4_folder)
    assert graphs.weights == plain.weights
    with graphs.held(vlm):
        inside = vlm.model.lm_head.weight.clone()
    with plain.held(vlm):
        assert (vlm.model.lm_head.weight == inside).all()


def test_parity_with_unrounded_activations_reads_weights_from_blobs(cache):
    assert verify_folder("org/int4", "org/model")["parity"]["passed"]


def test_a_changed_blob_is_found(cache, tmp_path):
    home = shutil.copytree(cache / "models--org--export", tmp_path / "models--org--export", symlinks=True)
    (snapshot,) = (home / "snapshots").iterdir()
    blob = (snapshot / "decoder.onnx.data").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(InvalidArtifact, match=r"decoder\.onnx\.data was changed"):
        read_manifest(snapshot)


@pytest.fixture
def foreign(base_folder, tmp_path):
    return in_transformers_js(base_folder, tmp_path / "foreign")


def test_foreign_graphs_in_the_cache_are_copied_as_they_are(foreign, tmp_path):
    snapshot = in_cache(foreign, tmp_path / "cache", "org/foreign")
    for at, folder in enumerate((foreign, snapshot)):
        (tmp_path / str(at)).mkdir()
        save_beside(load_graph(folder / "onnx" / "decoder_model_merged.onnx"), tmp_path / str(at), "decoder")
    for name in (LAYOUT.decoder, LAYOUT.data("decoder")):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_weights_that_are_a_link_elsewhere_are_refused(foreign, tmp_path):
    data = foreign / "onnx" / "decoder_model_merged.onnx.data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArtifact, match=r"decoder_model_merged\.onnx\.data is a link"):
        load_graph(data.with_suffix(""))
