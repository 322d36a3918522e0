"""What retrieval finds, what it costs in the graph and beside it, and how large an index gets.

    python bench/retrieval.py accuracy MODEL                  own caption and own kind, per place and layer
    python bench/retrieval.py latency MODEL --base BASE       prefill with 1 000, 10 000 and 100 000 texts
    python bench/retrieval.py build MODEL                     texts embedded a second; a million texts on disk

MODEL is reference:mild or reference:severe, BASE an export of it without adapters. Prints JSON. Keys of the indexes
in `latency` and of the million in `build` are drawn at random: time and bytes do not depend on their values.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import torch
from PIL import Image

from safetykit.adapters import Adapter, Intervention, Site
from safetykit.adapters.artifact.manifest import AdapterInfo, DataInfo, RetrievalInfo
from safetykit.adapters.retrieval.fit import QueryHead
from safetykit.adapters.retrieval.retrieval import CAPTIONS, INFO
from safetykit.bench.skeleton import arguments, run
from safetykit.export.document.latency import BAKED, CONTROL, UNMODIFIED, compare, interleave
from safetykit.export.manifest import LAYOUT, read_manifest
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import CPU
from safetykit.export.surgery.adapt import adapt, copy_base
from safetykit.toolkit.data.captions import captions_path, load_captions
from safetykit.toolkit.data.pictures import open_picture
from safetykit.toolkit.data.sources import model_path
from safetykit.toolkit.index.caption_index import CaptionIndex
from safetykit.toolkit.index.embedding import EmbedderInfo
from safetykit.toolkit.model.requests import Request
from safetykit.toolkit.model.vlm import VLM
from safetykit.toolkit.reference.atlas import SEEN_FONTS, SEEN_SETS, UNSEEN_SETS, data_folder, reference, shown
from safetykit.toolkit.reference.captions import caption
from safetykit.toolkit.reference.world import things
from safetykit.toolkit.retrieval.build import build_index
from safetykit.toolkit.retrieval.embedders import VLMEmbedder
from safetykit.toolkit.retrieval.fit import image_states, picture_states

_FAISS, _NUMPY = "external, FAISS", "external, NumPy"


class Drawn:
    """Random vectors, as fast as they can be drawn."""

    centred = False

    def __init__(self, dimension: int) -> None:
        self.info, self.dimension = EmbedderInfo(kind="precomputed", name="random"), dimension
        self._random = np.random.default_rng(0)

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self._random.standard_normal((len(texts), self.dimension), dtype=np.float32)


def accuracy(vlm: VLM) -> Iterator[dict[str, Any]]:
    """Pictures of things that no fit saw, among the captions of all things, per site whose states are the keys."""
    world = things()
    texts = [caption(thing) for thing in world]
    kinds = np.array([thing.kind for thing in world])
    fitted = load_captions(captions_path("reference"))
    states = picture_states(vlm, fitted)
    groups = {
        "things of the fit, unseen rendering": ("fit", UNSEEN_SETS),
        "things of test, seen renderings": ("test", SEEN_SETS),
        "things of test, unseen rendering": ("test", UNSEEN_SETS),
        "things of test, drawn words": ("test", SEEN_FONTS),
    }
    asked = {name: _tiles(vlm, *group) for name, group in groups.items()}
    for site in [*(Site.block(layer) for layer in range(len(vlm.parts.layers))), Site("final_norm")]:
        with tempfile.TemporaryDirectory() as folder:
            index = build_index(lambda: iter(texts), VLMEmbedder(vlm, site), Path(folder) / "index")
            ids = index.ids_of(texts)
            head = QueryHead.fit(states, np.stack([index.keys[ids[item.caption]] for item in fitted]))
            for name, (own, shown_states) in asked.items():
                queries = shown_states @ head.weight.numpy().T + head.bias.numpy()
                found, _ = index.search(queries / np.linalg.norm(queries, axis=1, keepdims=True), 5)
                right = found == own[:, None]
                yield {
                    "site": str(site),
                    "group": name,
                    "pictures": len(own),
                    "texts": len(index),
                    "top1": float(right[:, 0].mean()),
                    "top5": float(right.any(1).mean()),
                    "top1_same_kind": float((kinds[found[:, 0]] == kinds[own]).mean()),
                }


def _tiles(vlm: VLM, split: str, atlases: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the things of a split in these atlases, and their mean image states."""
    chosen = [(t.index, a) for t in things() if t.split == split for a in atlases if t.index in shown(a)]
    states = []
    for start in range(0, len(chosen), 32):
        tiles = [_tile(at, atlas) for at, atlas in chosen[start : start + 32]]
        states += [one.mean(0).numpy() for one in image_states(vlm, tiles)]
    return np.array([at for at, _ in chosen]), np.stack(states)


def _tile(at: int, atlas: str) -> Image.Image:
    return open_picture(reference(atlas, at), data_folder() / "records")


def latency(vlm: VLM, base: Path, sizes: Sequence[int], rounds: int, k: int) -> Iterator[dict[str, Any]]:
    """One picture's prefill: unmodified twice, with the index in the graph, and with a search beside it."""
    inputs = vlm.inputs.prepare([Request("what is this ?", _tile(0, "noto"))])
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            texts = [f"text {at}" for at in range(size)]
            index = build_index(lambda texts=texts: iter(texts), Drawn(128), Path(folder) / "index")
            flat = index.faiss()
            inside = _export(vlm, base, index, Path(folder) / "inside", k, external=False)
            outside = _export(vlm, base, index, Path(folder) / "outside", k, external=True)
            plain = [OnnxVLM.from_pretrained(base, verify=False) for _ in range(2)]

            def timed(model: OnnxVLM, search: Any = None) -> Callable[[], tuple[float]]:
                def run() -> tuple[float]:
                    sleep(0.02)
                    start = perf_counter()
                    state = model.prefill(inputs)
                    if search is not None:
                        search.search(state.extras["retrieval_query"], k)
                    return (perf_counter() - start,)

                return run

            arms = {
                UNMODIFIED: timed(plain[0]),
                CONTROL: timed(plain[1]),
                BAKED: timed(inside),
                _FAISS: timed(outside, flat),
                _NUMPY: timed(outside, index),
            }
            times = {name: values[:, 0] for name, values in interleave(arms, rounds, 3, seed=0).items()}
            for name in (BAKED, _FAISS, _NUMPY):
                found = compare({**times, BAKED: times[name]}, seed=0)
                yield {
                    "texts": size,
                    "arm": "in the graph" if name == BAKED else name,
                    "prefill_ms": found.baked_ms,
                    "added_ms": found.baked_ms - found.unmodified_ms,
                    "ratio": found.ratio.model_dump(),
                    "control": found.control.model_dump(),
                    "verdict": found.verdict,
                    "adapter_bytes": (inside if name == BAKED else outside)
                    .path.joinpath(LAYOUT.adapter_data("vision_encoder"))
                    .stat()
                    .st_size,
                    "index_bytes": 0 if name == BAKED else (index.folder / "index.safetensors").stat().st_size,
                }
            index.close()


def _export(vlm: VLM, base: Path, index: CaptionIndex, out: Path, k: int, *, external: bool) -> OnnxVLM:
    width, generator = vlm.base.d_model, torch.Generator().manual_seed(0)
    tensors = {
        "query_weight": torch.randn(index.manifest.dimension, width, generator=generator) / width**0.5,
        "query_bias": torch.zeros(index.manifest.dimension),
    }
    if not external:
        tensors |= {"keys": torch.from_numpy(np.array(index.keys)), "ranks": torch.arange(k)}
    info = RetrievalInfo(k=k, prefix=False, external=external, count=len(index), index=index.digest)
    adapter = Adapter(
        AdapterInfo(
            method="benchmark",
            variant="random keys",
            sign_convention="",
            hyperparameters={},
            seed=0,
            base=vlm.base,
            data=DataInfo(sha256="0" * 64, counts={}),
            versions={},
        ),
        (Intervention("RetrievalQuery" if external else "RetrieveTopK", Site("projector"), "all", "prefill", tensors),),
        {INFO: info.model_dump(mode="json"), **({} if external else {CAPTIONS: list(index)})},
    )
    out.mkdir()
    manifest = read_manifest(base)
    copy_base(base, out, manifest)
    return OnnxVLM(out, adapt(out, manifest, [adapter]), vlm.inputs, CPU, index=index if external else None)


def build(vlm: VLM, embedded: int, drawn: int) -> Iterator[dict[str, Any]]:
    """Throughput with the model's own embedder, and size, time and memory of a large index."""
    world = things()
    words, colours = [thing.word for thing in world], sorted({thing.colour for thing in world})
    kinds = sorted({thing.kind for thing in world})

    def sentences() -> Iterator[str]:
        made = itertools.product(words, colours, kinds)
        return (f"a picture of a {colour} {word}, a {kind}." for word, colour, kind in itertools.islice(made, embedded))

    with tempfile.TemporaryDirectory() as folder:
        start = perf_counter()
        index = build_index(sentences, VLMEmbedder(vlm), Path(folder) / "embedded")
        took = perf_counter() - start
        yield {"keys": "the model's", "texts": len(index), "seconds": took, "texts_a_second": len(index) / took}
        index.close()
        for dtype in ("float32", "float16"):
            before, start = _peak(), perf_counter()
            index = build_index(
                lambda: (f"caption number {at} of a picture with some words" for at in range(drawn)),
                Drawn(128),
                Path(folder) / dtype,
                batch_size=4096,
                dtype=dtype,
            )
            took, after = perf_counter() - start, _peak()
            index.close()
            start = perf_counter()
            CaptionIndex.load(Path(folder) / dtype)
            verified = perf_counter() - start
            start = perf_counter()
            index = CaptionIndex.load(Path(folder) / dtype, verify=False)
            loaded = perf_counter() - start
            query = np.array(index.keys[:1], np.float32)
            found = {"numpy_ms": _milliseconds(partial(index.search, query, 5))}
            flat = index.faiss()
            found["faiss_ms"] = _milliseconds(partial(flat.search, query, 5))
            yield {
                "keys": f"random {dtype}",
                "texts": len(index),
                "width": 128,
                "seconds": took,
                "bytes": (index.folder / "index.safetensors").stat().st_size,
                "peak_memory_before": before,
                "peak_memory_after_build": after,
                "load_ms": 1000 * loaded,
                "load_verified_ms": 1000 * verified,
                **found,
            }
            del flat
            index.close()


def _peak() -> int:
    """Largest resident memory of this process so far, in bytes; pages of mapped files count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _milliseconds(call: Callable[[], object], rounds: int = 7) -> float:
    times = []
    for _ in range(rounds):
        start = perf_counter()
        call()
        times.append(perf_counter() - start)
    return 1000 * float(np.median(times))


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__)
    parser.add_argument("what", choices=("accuracy", "latency", "build"))
    parser.add_argument("model")
    parser.add_argument("--base", type=Path, help="export of MODEL without adapters; for latency")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--embedded", type=int, default=20_000, help="texts for the model's embedder")
    parser.add_argument("--drawn", type=int, default=1_000_000, help="texts with random keys")
    options = parser.parse_args(given)
    if options.what == "latency" and options.base is None:
        parser.error("latency needs --base")
    vlm = VLM.from_pretrained(model_path(options.model))
    rows = {
        "accuracy": lambda: accuracy(vlm),
        "latency": lambda: latency(vlm, options.base, options.sizes, options.rounds, options.k),
        "build": lambda: build(vlm, options.embedded, options.drawn),
    }[options.what]()
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    run(main)
