"""The caption index: built in pieces or at once it is the same bytes, and it searches exactly."""

import hashlib
import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from planted_captions import PlantedEmbedder, planted_index

from safetykit.adapters import InvalidArtifact, UsageError
from safetykit.adapters.artifact.output import claimed
from safetykit.adapters.errors import LeftBehind
from safetykit.toolkit.index.caption_index import CaptionIndex
from safetykit.toolkit.retrieval.build import build_index
from safetykit.toolkit.retrieval.sources import open_texts

TEXTS = [f"a picture of thing {at}, größer than {at % 7}." for at in range(300)]


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def queries(count, dimension=24, seed=5):
    found = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_keys_are_normalised_embeddings_and_texts_come_back(tmp_path):
    index = planted_index(tmp_path / "index", TEXTS, batch_size=64)
    assert list(index) == TEXTS and index[-1] == TEXTS[-1] and index[2:4] == TEXTS[2:4]
    wanted = np.stack([PlantedEmbedder().vector(text) for text in TEXTS])
    assert np.allclose(index.keys, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-6)
    assert not index.keys.flags.writeable


def test_any_safetensors_reader_opens_it(tmp_path):
    index = planted_index(tmp_path / "index", TEXTS)
    read = safetensors.numpy.load_file(tmp_path / "index" / "index.safetensors")
    assert np.array_equal(read["keys"], index.keys)
    assert read["bytes"].tobytes().decode() == "".join(TEXTS)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("centred", [False, True])
def test_an_interrupted_build_goes_on_and_gives_the_same_bytes(tmp_path, monkeypatch, dtype, centred):
    monkeypatch.setattr("safetykit.toolkit.retrieval.build._FLUSH", 1)
    options = {"batch_size": 16, "dtype": dtype}
    planted_index(tmp_path / "whole", TEXTS, PlantedEmbedder(centred=centred), **options)
    counted = len(TEXTS) if centred else 0  # the centre is taken from all of so few texts first
    for stop in (counted + 50, 101):
        with pytest.raises(KeyboardInterrupt):
            planted_index(tmp_path / "pieces", TEXTS, PlantedEmbedder(centred=centred, fail_after=stop), **options)
        assert not (tmp_path / "pieces").exists()
    last = PlantedEmbedder(centred=centred)
    planted_index(tmp_path / "pieces", TEXTS, last, **options)
    assert last.calls <= len(TEXTS) - 48 - 96  # what the first two runs had finished was not done again
    assert contents(tmp_path / "pieces") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces", "whole"]


def test_of_two_builds_of_an_index_the_second_is_refused(tmp_path):
    with claimed(tmp_path / "index"), ThreadPoolExecutor(1) as other:
        with pytest.raises(UsageError, match="index is being written by process"):
            other.submit(planted_index, tmp_path / "index", TEXTS).result()
        planted_index(tmp_path / "index", TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_build_of_something_else_does_not_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("safetykit.toolkit.retrieval.build._FLUSH", 1)
    with pytest.raises(KeyboardInterrupt):
        planted_index(tmp_path / "index", TEXTS, PlantedEmbedder(fail_after=100), batch_size=32)
    embedder = PlantedEmbedder()
    for texts, size, named in ((TEXTS[::-1], 32, "texts"), (TEXTS, 16, "--batch-size")):
        with pytest.raises(UsageError, match=f"96 embedded texts .* had other: {named}. .* --overwrite"):
            planted_index(tmp_path / "index", texts, embedder, batch_size=size)
    assert embedder.calls == 0
    with pytest.warns(LeftBehind, match="96 embedded texts of other work"):
        planted_index(tmp_path / "index", TEXTS[::-1], embedder, batch_size=32, overwrite=True)
    assert embedder.calls == len(TEXTS)


def test_repeated_texts_are_kept_once(tmp_path):
    index = planted_index(tmp_path / "index", [*TEXTS[:5], *TEXTS[:3], TEXTS[7]])
    assert list(index) == [*TEXTS[:5], TEXTS[7]]
    assert index.manifest.duplicates == 3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numpy_and_faiss_find_the_same_as_a_full_sort(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("safetykit.toolkit.index.caption_index._BLOCK", 37)
    index = planted_index(tmp_path / "index", TEXTS, dtype=dtype)
    asked = queries(130)
    exact = asked.astype(np.float64) @ np.asarray(index.keys, np.float64).T
    wanted = np.argsort(-exact, axis=1, kind="stable")[:, :6]
    for search in (index.search, index.faiss().search):
        ids, scores = search(asked, 6)
        assert np.array_equal(ids, wanted)
        assert np.allclose(scores, np.take_along_axis(exact, wanted, 1), atol=1e-5)


def test_equal_scores_go_to_the_lower_id_everywhere(tmp_path, monkeypatch):
    monkeypatch.setattr("safetykit.toolkit.index.caption_index._BLOCK", 32)
    texts = [f"{at}|same" if at % 3 == 0 else f"{at}" for at in range(200)]
    index = planted_index(tmp_path / "index", texts)
    ids, _ = index.search(index.keys[:1], 10)
    assert ids[0].tolist() == list(range(0, 30, 3))
    assert np.array_equal(index.faiss().search(index.keys[:1], 10)[0], ids)


def test_all_texts_can_be_asked_for(tmp_path):
    index = planted_index(tmp_path / "index", TEXTS[:20])
    assert sorted(index.search(queries(1), 20)[0][0].tolist()) == list(range(20))
    with pytest.raises(UsageError, match="21 texts cannot be retrieved from 20"):
        index.search(queries(1), 21)
    with pytest.raises(UsageError, match=r"\[1, 8\].*width 24.*embedder that made the index"):
        index.search(queries(1, 8), 1)


def test_ids_of_texts_are_found(tmp_path):
    index = planted_index(tmp_path / "index", TEXTS)
    assert index.ids_of([TEXTS[299], TEXTS[0], "elsewhere"]) == {TEXTS[299]: 299, TEXTS[0]: 0}


def test_further_texts_need_the_same_embedder(tmp_path):
    index = planted_index(tmp_path / "index", TEXTS, PlantedEmbedder(centred=True))
    assert np.allclose(index.embed(PlantedEmbedder(), TEXTS[:3]), index.keys[:3], atol=1e-6)
    other = PlantedEmbedder()
    other.info = other.info.model_copy(update={"sha256": "1" * 64})
    with pytest.raises(UsageError, match="was made by planted.*Use the embedder that made it"):
        index.embed(other, ["x"])


def test_every_changed_byte_is_found_and_the_file_named(tmp_path):
    planted_index(tmp_path / "index", ["one", "two", "three"], PlantedEmbedder(4))
    for name in ("index.safetensors", "manifest.json"):
        path = tmp_path / "index" / name
        whole = path.read_bytes()
        for at in range(0, len(whole), 3):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(InvalidArtifact, match=name):
                CaptionIndex.load(tmp_path / "index")
        for size in (0, 4, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(InvalidArtifact, match=name):
                CaptionIndex.load(tmp_path / "index")
        path.write_bytes(whole)
    assert len(CaptionIndex.load(tmp_path / "index")) == 3


def test_verify_checks_an_index_and_names_strangers(tmp_path):
    from safetykit.export.commands.verification import verify_folder

    folder = planted_index(tmp_path / "index", TEXTS[:3]).folder
    assert verify_folder(folder)["kind"] == "index" and verify_folder(folder)["files"] == 1
    (folder / "keys.npy").write_bytes(b"")
    with pytest.raises(InvalidArtifact, match="does not name: keys.npy"):
        verify_folder(folder)


def test_a_damaged_data_file_is_refused_without_its_digest_too(tmp_path):
    planted_index(tmp_path / "index", ["one", "two", "three"], PlantedEmbedder(4))
    path = tmp_path / "index" / "index.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", b"\xff" * 8 + whole[8:], whole[:8] + b"[]" + whole[10:], b""):
        path.write_bytes(damaged)
        with pytest.raises(InvalidArtifact, match="index.safetensors"):
            CaptionIndex.load(tmp_path / "index", verify=False)


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(UsageError, match="no index folder.*safetykit index build"):
        CaptionIndex.load(tmp_path / "nowhere")
    planted_index(tmp_path / "index", TEXTS[:3])
    (tmp_path / "index" / "index.safetensors").unlink()
    with pytest.raises(InvalidArtifact, match="index.safetensors is missing"):
        CaptionIndex.load(tmp_path / "index")


def test_texts_without_an_embedding_are_named(tmp_path):
    class Broken(PlantedEmbedder):
        def vector(self, text):
            return np.full(self.dimension, np.nan if text == TEXTS[3] else 1, np.float32)

    with pytest.raises(InvalidArtifact, match="thing 3,.*has no embedding"):
        planted_index(tmp_path / "index", TEXTS, Broken())


def test_texts_that_change_while_they_are_read_are_noticed(tmp_path):
    reads = iter([TEXTS, TEXTS, TEXTS[:-1]])
    with pytest.raises(UsageError, match="changed while they were indexed"):
        build_index(lambda: iter(next(reads)), PlantedEmbedder(), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_existing_folder_is_kept(tmp_path):
    planted_index(tmp_path / "index", TEXTS[:3])
    with pytest.raises(UsageError, match="already exists"):
        planted_index(tmp_path / "index", TEXTS[:4])
    assert len(planted_index(tmp_path / "index", TEXTS[:4], overwrite=True)) == 4
    with pytest.raises(UsageError, match="no captions to index"):
        planted_index(tmp_path / "none", [])


def test_memory_does_not_grow_with_the_texts(tmp_path):
    class Cheap(PlantedEmbedder):
        def embed(self, texts):
            return np.ones((len(texts), self.dimension), np.float32)

    def peak(count):
        tracemalloc.start()
        build_index(
            lambda: (f"text {at}" for at in range(count)), Cheap(256), tmp_path / str(count), batch_size=64
        ).close()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(1000), peak(11_000)
    # 10 000 keys of width 256 are 10 MB; per text only a digest, a flag and what sorting them takes may be held.
    assert large - small < 10_000 * 200


def test_json_lines_with_captions_or_texts_are_sources(tmp_path):
    file = tmp_path / "captions.jsonl"
    file.write_text('{"caption": "a", "image": "x.png"}\n\n{"text": "b", "label": "toxic"}\n')
    texts = open_texts(str(file))
    assert list(texts()) == list(texts()) == ["a", "b"]
    file.write_text('{"caption": "a"}\n{"id": 1}\n')
    with pytest.raises(InvalidArtifact, match="captions.jsonl:2 has no caption"):
        list(open_texts(str(file))())
    file.write_text("[\n")
    with pytest.raises(InvalidArtifact, match="captions.jsonl:1 is not JSON"):
        list(open_texts(str(file))())
    file.write_text(json.dumps({"caption": " "}))
    with pytest.raises(InvalidArtifact, match="captions.jsonl:1: its caption is ' '"):
        list(open_texts(str(file))())
    file.write_text('{"caption": "\\ud800"}')
    with pytest.raises(InvalidArtifact, match="captions.jsonl:1 is not valid Unicode"):
        list(open_texts(str(file))())
    with pytest.raises(UsageError, match="There are no captions at"):
        open_texts(str(tmp_path / "missing.jsonl"))


def test_folders_of_pictures_are_sources(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "b.txt").write_text("the second\n")
    (tmp_path / "a.txt").write_text("the first")
    assert list(open_texts(str(tmp_path))()) == ["the first", "the second"]
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UsageError, match="b.png has no caption.*b.txt"):
        list(open_texts(str(tmp_path))())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "from metadata"}\n')
    assert list(open_texts(str(tmp_path))()) == ["from metadata"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no pictures"):
        open_texts(str(tmp_path / "empty"))


def test_parquet_columns_are_sources(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    parquet.write_table(pa.table({"n": [1, 2], "caption": ["a", "b"]}), tmp_path / "captions.parquet")
    assert list(open_texts(str(tmp_path / "captions.parquet"))()) == ["a", "b"]
    parquet.write_table(pa.table({"n": [1, 2]}), tmp_path / "other.parquet")
    with pytest.raises(UsageError, match="no column caption or text.*It has n"):
        open_texts(str(tmp_path / "other.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InvalidArtifact, match="broken.parquet cannot be read"):
        open_texts(str(tmp_path / "broken.parquet"))


def test_parquet_without_its_library_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "captions.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"needs pyarrow.*safetykit\[parquet\]"):
        open_texts(str(tmp_path / "captions.parquet"))


def test_search_without_faiss_says_what_to_install(tmp_path, monkeypatch):
    index = planted_index(tmp_path / "index", TEXTS[:3])
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(UsageError, match=r"needs FAISS, which is not installed.*safetykit\[retrieval\]"):
        index.faiss()


HEADERS = [
    {"keys": {"dtype": "F32", "shape": [2**64, 1], "data_offsets": [0, 4]}},
    {"keys": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}},
    {"keys": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}},
    {"keys": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}},
    {"keys": {"dtype": "F32", "shape": 7, "data_offsets": [0, 4]}},
    {"keys": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}},
    {"keys": {"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]}},
    {"keys": {"dtype": "F32", "shape": [1], "data_offsets": None}},
    {"keys": {"dtype": "F32", "shape": [0] * 99, "data_offsets": [0, 0]}},
    {"keys": None},
    {},
    7,
]


@pytest.mark.parametrize("header", HEADERS, ids=str)
def test_a_header_that_cannot_be_is_refused_without_its_digest_too(tmp_path, header):
    planted_index(tmp_path / "index", ["one", "two", "three"], PlantedEmbedder(4))
    body = json.dumps(header).encode()
    (tmp_path / "index" / "index.safetensors").write_bytes(len(body).to_bytes(8, "little") + body + bytes(4))
    with pytest.raises(InvalidArtifact, match="index.safetensors"):
        CaptionIndex.load(tmp_path / "index", verify=False)
