"""Tensors in a checkpoint's safetensors files, read in pieces by plain reads.

Neither whole tensors nor memory maps: pages of a mapped file count as resident memory for as long as it is open, and
one embedding can be larger than the memory that is to spare. The library checks a file's header; where a tensor's bytes
lie is what the header says (https://huggingface.co/docs/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InvalidArtifact

PIECE = 2**25  # bytes that are read at once
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        path: of the file.
        start: of its bytes there.
    """

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[bytes]:
        """Its bytes, in order."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            left = self.nbytes
            while left:
                piece = file.read(min(PIECE, left))
                if not piece:
                    raise _damaged(self.path, "it ends early")
                left -= len(piece)
                yield piece

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) along the first axis."""
        size = math.prod(self.shape[1:]) * self.dtype.itemsize
        return self._read(self.start + start * size, (stop - start, *self.shape[1:]))

    def whole(self) -> Tensor:
        """All of it."""
        return self._read(self.start, self.shape)

    def _read(self, start: int, shape: Sequence[int]) -> Tensor:
        data = bytearray(math.prod(shape) * self.dtype.itemsize)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(start)
            view, done = memoryview(data), 0
            while done < len(data):
                count = file.readinto(view[done:])
                if not count:
                    raise _damaged(self.path, "it ends early")
                done += count
        if not data:
            return torch.empty(shape, dtype=self.dtype)
        return torch.frombuffer(data, dtype=self.dtype).reshape(shape)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        InvalidArtifact: the file is damaged, or holds a type that PyTorch does not have.
    """
    try:
        with safe_open(path, framework="pt") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None
    with open(path, "rb") as raw:
        length = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(length))
    if strange := sorted(set(types.values()) - set(_DTYPES)):
        raise InvalidArtifact(
            f"{path} holds tensors of type {strange[0]}, which are no plain numbers.",
            "Pass the checkpoint before it was quantised.",
        )
    return {
        name: StoredTensor(
            path, 8 + length + header[name]["data_offsets"][0], tuple(header[name]["shape"]), _DTYPES[types[name]]
        )
        for name in types
    }


def _damaged(path: Path, reason: str) -> InvalidArtifact:
    return InvalidArtifact(f"{path} is not a whole safetensors file: {reason}.", "Get the checkpoint again.")
