"""The caption index: normalised embeddings of texts, searched exactly; a million of them load by memory map.

A folder of two files. ``index.safetensors`` holds ``keys`` [N, d_key], which are embeddings less their ``centre``
[d_key] at length 1, and the texts as their UTF-8 ``bytes`` end to end with ``offsets`` [N + 1]; ``manifest.json`` is
sealed and says which embedder made them. Equal scores go to the lower id, here, with FAISS and in a graph alike.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Literal, overload

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field

from ...adapters.artifact.files import read_inside, require_hashes, require_named
from ...adapters.artifact.hub import located, plain_file
from ...adapters.artifact.manifest import Files, Sha256, Strict, load_sealed
from ...adapters.artifact.signature import require_accepted
from ...adapters.errors import InvalidArtifact, UsageError
from .embedding import Embedder, EmbedderInfo
from .faiss_search import FaissSearch
from .ranking import Found, best, merge
from .types import KeyType

DATA, MANIFEST = "index.safetensors", "manifest.json"
_MANIFEST_LIMIT = 2**20
_HEADER_LIMIT = 2**20
_BLOCK, _QUERIES = 2**16, 64  # keys and queries whose scores are in memory at a time
_NUMPY = {"F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8}


class IndexManifest(Strict):
    """``manifest.json`` of an index.

    Attributes:
        captions: SHA-256 of the texts, in order.
        duplicates: texts of the source that were dropped because an equal one came before.
    """

    schema_version: Literal[1] = 1
    kind: Literal["safetykit.index"] = "safetykit.index"
    embedder: EmbedderInfo
    count: int = Field(ge=1)
    dimension: int = Field(ge=1)
    dtype: KeyType
    captions: Sha256
    duplicates: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    versions: dict[str, str]
    files: Files


class CaptionIndex(Sequence[str]):
    """An index on disk; as a sequence, its texts by id.

    Attributes:
        folder: where it lies.
        manifest: what it holds.
        keys: [count, dimension], read-only and memory-mapped.
        centre: [dimension], taken from an embedding before it is normalised; zeros for embedders that need none.
    """

    def __init__(self, folder: Path, manifest: IndexManifest, arrays: dict[str, np.ndarray]) -> None:
        """Use :meth:`load`."""
        self.folder, self.manifest = folder, manifest
        self.keys: Float[np.ndarray, "count dimension"] = arrays["keys"]
        self.centre: Float[np.ndarray, " dimension"] = arrays["centre"]
        self._offsets, self._bytes = arrays["offsets"], arrays["bytes"]

    @classmethod
    def load(cls, folder: Path | str, *, verify: bool = True) -> CaptionIndex:
        """Open an index folder.

        Args:
            verify: compare the data file with its digest first, which reads all of it once.

        Raises:
            UsageError: there is no such folder.
            InvalidArtifact: a file is missing, damaged or was changed; it is named.
            SignatureFailed: the policy in force refuses the folder.
        """
        folder = located(folder)
        if not folder.is_dir():
            raise UsageError(f"There is no index folder at {folder}.", "Make one with `safetykit index build`.")
        where = str(folder / MANIFEST)
        data = read_inside(folder, MANIFEST, _MANIFEST_LIMIT)
        if require_accepted(folder, MANIFEST, data) is not None:
            require_named(folder, {MANIFEST, DATA})
        manifest = load_sealed(IndexManifest, data, where)
        if set(manifest.files) != {DATA}:
            raise InvalidArtifact(f"{where} does not name {DATA} alone.", "Build the index again.")
        require_hashes(folder, dict(manifest.files) if verify else {})
        arrays = map_arrays(plain_file(folder, DATA))
        wanted = {
            "keys": ((manifest.count, manifest.dimension), manifest.dtype),
            "centre": ((manifest.dimension,), "float32"),
            "offsets": ((manifest.count + 1,), "int64"),
            "bytes": (arrays["bytes"].shape if "bytes" in arrays else None, "uint8"),
        }
        if {name: (array.shape, array.dtype.name) for name, array in arrays.items()} != wanted:
            raise InvalidArtifact(f"{folder / DATA} does not hold what {where} says.", "Build the index again.")
        ends = arrays["offsets"]
        if ends[0] != 0 or ends[-1] != len(arrays["bytes"]) or (np.diff(ends) <= 0).any():
            raise InvalidArtifact(f"The offsets in {folder / DATA} do not fit its texts.", "Build the index again.")
        return cls(folder, manifest, arrays)

    def __len__(self) -> int:
        return self.manifest.count

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[one] for one in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        return self._bytes[self._offsets[at] : self._offsets[at + 1]].tobytes().decode()

    def blocks(self) -> Iterator[tuple[int, Float[np.ndarray, "rows dimension"]]]:
        """The keys in float32, a block at a time, each with the id of its first row."""
        for start in range(0, len(self), _BLOCK):
            yield start, np.asarray(self.keys[start : start + _BLOCK], dtype=np.float32)

    def search(
        self, queries: Float[np.ndarray, "batch dimension"], k: int
    ) -> tuple[Int[np.ndarray, "batch k"], Float[np.ndarray, "batch k"]]:
        """Ids and scores of the k texts whose keys have the largest dot products with each query, best first.

        Raises:
            UsageError: ``k`` is not between 1 and the number of texts, or the queries have another width.
        """
        queries = self.checked(queries, k)
        parts = [queries[start : start + _QUERIES] for start in range(0, len(queries), _QUERIES)]
        found: list[Found | None] = [None] * len(parts)
        for start, keys in self.blocks():
            for at, part in enumerate(parts):
                ids, scores = best(part @ keys.T, min(k, len(keys)))
                found[at] = merge(found[at], (ids + start, scores), k)
        ids, scores = zip(*found, strict=True)
        return np.concatenate(ids), np.concatenate(scores)

    def embed(self, embedder: Embedder, texts: Sequence[str]) -> Float[np.ndarray, "batch dimension"]:
        """Keys of further texts.

        Raises:
            UsageError: another embedder made this index.
        """
        by_whom = {"name", "ran"}
        if embedder.info.model_dump(exclude=by_whom) != self.manifest.embedder.model_dump(exclude=by_whom):
            raise self._another(f"this {embedder.info.name} ({embedder.info.kind})")
        return normalised(embedder.embed(texts), self.centre, texts)

    def require_maker(self, name: str, *, vlm: bool, dimension: int | None = None) -> None:
        """Refuse an embedder that did not make this index, as far as it shows before it is loaded.

        Args:
            name: how the user calls it.
            vlm: it is a model's decoder, not an encoder.
            dimension: width of its vectors, if that is known.

        Raises:
            UsageError: another kind made it, or one of another width.
        """
        made_by = self.manifest.embedder
        if vlm != (made_by.kind == "vlm"):
            raise self._another(name)
        if dimension is not None and dimension != self.manifest.dimension:
            raise self._another(f"{name}, whose states have width {dimension}")

    def _another(self, embedder: str) -> UsageError:
        made_by = self.manifest.embedder
        return UsageError(
            f"The index in {self.folder} was made by {made_by.name} ({made_by.kind}), not by {embedder}.",
            "Use the embedder that made it, or build the index again.",
        )

    def ids_of(self, texts: Iterable[str]) -> dict[str, int]:
        """Ids of those among ``texts`` that the index holds, found in one pass over it."""
        wanted = {text.encode(): text for text in texts}
        data, ends = self._bytes.data, self._offsets.tolist()
        found = ((bytes(data[start:end]), at) for at, (start, end) in enumerate(pairwise(ends)))
        return {wanted[text]: at for text, at in found if text in wanted}

    def checked(self, queries: Float[np.ndarray, "batch dimension"], k: int) -> Float[np.ndarray, "batch dimension"]:
        """The queries in float32.

        Raises:
            UsageError: they do not fit this index.
        """
        queries = np.asarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.manifest.dimension:
            raise UsageError(
                f"The queries are {list(queries.shape)}; the index in {self.folder} has keys of width "
                f"{self.manifest.dimension}.",
                "Embed them with the embedder that made the index, or fit the retrieval on this index.",
            )
        if not 1 <= k <= len(self):
            raise UsageError(f"{k} texts cannot be retrieved from {len(self)}.", f"Ask for 1 to {len(self)}.")
        return queries

    @property
    def digest(self) -> str:
        """SHA-256 of the data file: which index it is."""
        return self.manifest.files[DATA]

    def searcher(self) -> FaissSearch | CaptionIndex:
        """FAISS where it is installed, else this index itself; both find the same ids."""
        return self.faiss() if find_spec("faiss") else self

    def faiss(self) -> FaissSearch:
        """The same search by FAISS (exact, inner product), which copies the keys into memory as float32.

        Raises:
            UsageError: faiss is not installed.
        """
        return FaissSearch(self)

    def close(self) -> None:
        """Let go of the memory map."""
        self.keys = self.centre = self._offsets = self._bytes = np.empty(0)


def normalised(
    vectors: Float[np.ndarray, "batch dimension"], centre: Float[np.ndarray, " dimension"], texts: Sequence[str]
) -> Float[np.ndarray, "batch dimension"]:
    """Embeddings of ``texts`` less ``centre``, at length 1.

    Raises:
        InvalidArtifact: the shape is wrong, or a text has no direction (NaN, infinite or zero).
    """
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.shape != (len(texts), len(centre)):
        raise InvalidArtifact(
            f"The embedder gave vectors of shape {list(vectors.shape)}, not {[len(texts), len(centre)]}.",
            "It is not the embedder that it says it is.",
        )
    vectors = vectors - centre
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = ~(np.isfinite(norms[:, 0]) & (norms[:, 0] > 0))
    if bad.any():
        raise InvalidArtifact(
            f"The caption {texts[int(bad.argmax())]!r} has no embedding "
            "(NaN, infinite, or just the mean of all texts).",
            "Take it out, or use another embedder.",
        )
    units: np.ndarray = vectors / norms
    return units


def map_arrays(path: Path, *, writable: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as memory-mapped arrays; its reader for NumPy would copy them.

    Raises:
        InvalidArtifact: it is no safetensors file with these dtypes, or it is shorter or longer than its header says.
    """
    try:
        with open(path, "r+b" if writable else "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _HEADER_LIMIT:
                raise ValueError("no header")
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        arrays, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, stop = entry["data_offsets"]
            dtype = np.dtype(_NUMPY[entry["dtype"]])
            shape = tuple(entry["shape"])
            if not all(type(size) is int and size >= 0 for size in (*shape, start, stop)):
                raise ValueError("sizes that are no numbers")
            if start != end or stop - start != math.prod(shape) * dtype.itemsize:
                raise ValueError("gaps or wrong sizes")
            end = stop
            arrays[name] = np.ndarray(shape, dtype, data, offset=8 + length + start)
        if 8 + length + end != len(data):
            raise ValueError("wrong length")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidArtifact(f"{path} is not a whole safetensors file ({error}).", "Build the index again.") from None
    return arrays
