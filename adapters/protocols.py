"""What a method asks of a model and of its records, so that the mathematics needs neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from .artifact.manifest import BaseInfo
from .artifact.sites import Site

Pool = Literal["last", "mean", "vision", "text"]


class Example(Protocol):
    """A labelled record (``toolkit.records.Record``)."""

    id: str
    label: Literal["harmful", "harmless"]
    carrier: str
    category: str
    split: str
    pair: str | None

    def digest(self) -> str:
        """Hex SHA-256 of everything the model sees of this record, pictures included."""
        ...


class StateSource(Protocol):
    """A model whose hidden states can be streamed (``toolkit.VLM``)."""

    @property
    def base(self) -> BaseInfo: ...

    def states(
        self, units: Sequence[Sequence[Example]], sites: Sequence[Site], pool: Pool = "last"
    ) -> Iterator[tuple[list[Example], dict[Site, Float[Tensor, "batch d_model"]]]]:
        """Run the records and yield pooled hidden states batch by batch.

        Records of one unit (a pair) always arrive in the same batch.
        """
        ...
