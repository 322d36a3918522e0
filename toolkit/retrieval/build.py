"""Building an index: two passes over the texts, memory bounded by a batch and 16 bytes a text, resumable.

The first pass counts the texts, drops repeated ones and so fixes the size of every tensor. The second embeds batch by
batch into the preallocated file. Batches lie at fixed places and keep their members, so a resumed build gives the
same bytes as one that was never interrupted.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from ...adapters.artifact.files import sha256_file, write_atomic
from ...adapters.artifact.held import beside
from ...adapters.artifact.kept import Identity, digests, goes_on
from ...adapters.artifact.manifest import canonical_json, dump_sealed, library_versions
from ...adapters.artifact.names import located
from ...adapters.artifact.output import atomic_folder, claimed
from ...adapters.artifact.policy import own_work
from ...adapters.errors import UsageError
from ..distributed.dealing import dealt
from ..distributed.output import by_first, of_first
from ..distributed.world import from_first, is_first
from ..index.caption_index import DATA, MANIFEST, CaptionIndex, IndexManifest, map_arrays, normalised
from ..index.embedding import Embedder
from ..index.types import KeyType
from ..progress import Progress
from .sources import Texts

_PROGRESS = "progress.json"
BATCH = 256  # texts embedded at once
BUILDING = "building"  # what an interrupted build goes on from, beside the index
_TYPES = {"float32": ("F32", 4), "float16": ("F16", 2)}
_DIGEST = 16  # bytes by which equal texts are found
_CENTRE = 4096  # texts whose mean is the centre
_FLUSH = 2**25  # bytes of keys between two notes of progress


@dataclass(frozen=True)
class Census:
    """What the first pass found.

    Attributes:
        keep: False for texts that repeat an earlier one.
        nbytes: UTF-8 bytes of those that are kept.
        sha256: of those that are kept, in order.
    """

    keep: Bool[np.ndarray, " texts"]
    nbytes: int
    sha256: str

    @property
    def count(self) -> int:
        """Texts that are kept."""
        return int(self.keep.sum())

    @classmethod
    def of(cls, texts: Texts) -> Census:
        """Count the texts.

        Raises:
            UsageError: there are none.
        """
        digests = bytearray()
        for text in texts():
            digests += hashlib.blake2b(text.encode(), digest_size=_DIGEST).digest()
        if not digests:
            raise UsageError("There are no captions to index.", "Give a source with at least one.")
        _, first = np.unique(np.frombuffer(digests, dtype=f"V{_DIGEST}"), return_index=True)
        keep = np.zeros(len(digests) // _DIGEST, dtype=bool)
        keep[first] = True
        nbytes, whole = 0, hashlib.sha256()
        for text in _kept(texts, keep):
            data = text.encode()
            nbytes += len(data)
            whole.update(len(data).to_bytes(8, "little") + data)
        return cls(keep, nbytes, whole.hexdigest())


def build_index(
    texts: Texts,
    embedder: Embedder,
    out: Path | str,
    *,
    batch_size: int = BATCH,
    dtype: KeyType = "float32",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CaptionIndex:
    """Embed texts into the index folder ``out``, which appears complete or not at all.

    An interrupted build goes on where it stopped when it is asked for again with the same texts and settings.

    Args:
        texts: each call streams all of them anew, always the same.
        batch_size: texts that are embedded at a time.
        progress: called with the number of texts done and in all.

    Raises:
        UsageError: no texts, ``out`` is taken, or the texts changed between two passes.
        InvalidArtifact: a text has no embedding (NaN, infinite or zero).
    """
    out = Path(out)
    work = beside(located(out), BUILDING)
    with by_first(claimed(out, overwrite=overwrite, spent=[work])):
        _build(texts, embedder, out, work, batch_size, dtype, overwrite, progress)
    with own_work():
        return CaptionIndex.load(out, verify=False)


def _build(
    texts: Texts,
    embedder: Embedder,
    out: Path,
    work: Path,
    batch_size: int,
    dtype: KeyType,
    overwrite: bool,
    progress: Progress | None,
) -> None:
    """Build the index where nobody else writes."""
    census = Census.of(texts)
    manifest = IndexManifest(
        embedder=embedder.info,
        count=census.count,
        dimension=embedder.dimension,
        dtype=dtype,
        captions=census.sha256,
        duplicates=len(census.keep) - census.count,
        batch_size=batch_size,
        versions=library_versions(),
        files={},
    )
    first = is_first()  # of several processes; it alone writes
    done = of_first(lambda: _prepare(work, manifest, census.nbytes))
    centre = np.zeros(embedder.dimension, np.float32)
    writing = _Writing(work, manifest, done) if first else None
    if embedder.centred and census.count > 1:
        if done == 0:
            centre[:] = _centre(texts, census, embedder, batch_size)
        centre = from_first(writing.centred(centre, known=done > 0) if writing else centre)
    missing = (batch for batch in _batches(texts, census, batch_size) if batch[0] >= done)
    last = done
    for (start, batch), found in dealt(missing, lambda item: embedder.embed(item[1])):
        last = start + len(batch)
        keys = normalised(found, centre, batch)
        if writing:
            writing.add(start, batch, keys, census)
        if progress:
            progress(last, census.count)
    if last != census.count or (writing and writing.used != census.nbytes):
        raise _changed()
    if writing:
        del writing.arrays
        _finish(work, out, manifest, overwrite)
    from_first(None)  # the folder is there


class _Writing:
    """The preallocated file of a build, filled in the order of the texts."""

    def __init__(self, work: Path, manifest: IndexManifest, done: int) -> None:
        self.arrays = map_arrays(work / DATA, writable=True)
        self.used = int(self.arrays["offsets"][done])
        self._work, self._manifest, self._noted = work, manifest, done

    def centred(self, centre: Float[np.ndarray, " dimension"], *, known: bool) -> Float[np.ndarray, " dimension"]:
        """The centre as it is stored; ``known``, if an interrupted build has stored it."""
        if not known:
            self.arrays["centre"][:] = centre
        return np.array(self.arrays["centre"])

    def add(self, start: int, batch: Sequence[str], keys: Float[np.ndarray, "batch dimension"], census: Census) -> None:
        """Texts from ``start`` on, with their keys.

        Raises:
            UsageError: they are longer than they were.
        """
        stop = start + len(batch)
        self.arrays["keys"][start:stop] = keys
        for at, text in enumerate(batch, start=start):
            data = np.frombuffer(text.encode(), np.uint8)
            if self.used + len(data) > census.nbytes:
                raise _changed()
            self.arrays["bytes"][self.used : self.used + len(data)] = data
            self.used += len(data)
            self.arrays["offsets"][at + 1] = self.used
        if stop == census.count or (stop - self._noted) * self.arrays["keys"].strides[0] >= _FLUSH:
            self.arrays["keys"].base.flush()
            _note(self._work, self._manifest, stop)
            self._noted = stop


def _finish(work: Path, out: Path, manifest: IndexManifest, overwrite: bool) -> None:
    manifest = manifest.model_copy(update={"files": {DATA: sha256_file(work / DATA)}})
    with atomic_folder(out, overwrite=overwrite) as folder:
        _link_or_copy(work / DATA, folder / DATA)
        (folder / MANIFEST).write_bytes(dump_sealed(manifest))


def _link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, where the file system can: the first stays in case that the index does not appear."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _kept(texts: Texts, keep: Bool[np.ndarray, " texts"]) -> Iterator[str]:
    number = 0
    for number, text in enumerate(texts(), start=1):
        if number > len(keep):
            break
        if keep[number - 1]:
            yield text
    if number != len(keep):
        raise _changed()


def _batches(texts: Texts, census: Census, size: int) -> Iterator[tuple[int, tuple[str, ...]]]:
    start, kept = 0, _kept(texts, census.keep)
    while batch := tuple(islice(kept, size)):
        yield start, batch
        start += len(batch)


def _centre(texts: Texts, census: Census, embedder: Embedder, batch_size: int) -> Float[np.ndarray, " dimension"]:
    total, seen = np.zeros(embedder.dimension), 0
    first = takewhile(lambda item: item[0] < _CENTRE, _batches(texts, census, batch_size))
    for (_, batch), found in dealt(first, lambda item: embedder.embed(item[1])):
        total += np.asarray(found, dtype=np.float64).sum(0)
        seen += len(batch)
    return total / seen


def _prepare(work: Path, manifest: IndexManifest, nbytes: int) -> int:
    """Make the work folder, or find the one of an interrupted build; returns the number of texts done."""
    if work.is_dir():
        try:
            state = json.loads((work / _PROGRESS).read_bytes())
            kept, done = state["work"], int(state["done"]) if (work / DATA).is_file() else 0
        except (OSError, ValueError, KeyError, TypeError):
            kept, done = None, 0
        if done and goes_on(work, kept, _identity(manifest), f"{done} embedded texts"):
            return done
        shutil.rmtree(work)
    work.mkdir(parents=True)
    _allocate(work / DATA, manifest, nbytes)
    _note(work, manifest, 0)
    return 0


def _allocate(path: Path, manifest: IndexManifest, nbytes: int) -> None:
    """Write a safetensors file full of zeros; wide types come first, so that each tensor is aligned."""
    code, width = _TYPES[manifest.dtype]
    count, dimension = manifest.count, manifest.dimension
    header, end = {}, 0
    for name, dtype, shape, size in (
        ("offsets", "I64", [count + 1], 8 * (count + 1)),
        ("centre", "F32", [dimension], 4 * dimension),
        ("keys", code, [count, dimension], width * count * dimension),
        ("bytes", "U8", [nbytes], nbytes),
    ):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        size = 8 + len(text) + end
        file.truncate(size)
        file.flush()
        if hasattr(os, "posix_fallocate"):  # so that a full disk is an error now, and not a crash of mapped memory
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # of file systems that cannot
                    raise


def _identity(manifest: IndexManifest) -> Identity:
    found = manifest.model_dump(mode="json")
    return {
        "texts": [found["captions"], found["duplicates"]],
        "model or site": found["embedder"],
        "--keys": found["dtype"],
        "--batch-size": found["batch_size"],
        "versions of libraries": found["versions"],
    }


def _note(work: Path, manifest: IndexManifest, done: int) -> None:
    write_atomic(work / _PROGRESS, canonical_json({"work": digests(_identity(manifest)), "done": done}))


def _changed() -> UsageError:
    return UsageError("The captions changed while they were indexed.", "Build the index again from files that stay.")
