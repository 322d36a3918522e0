"""A base export whose decoder is quantised, as what a fit stands on: PyTorch runs with its dequantised weights.

Thresholds, directions and probes that were fitted on the checkpoint's states are compared, in a quantised graph, with
states that rounding has moved. Fitted with the graph's own weights they belong to what ships. An adapter records which
(:class:`~safetykit.adapters.artifact.manifest.GraphWeights`), and can be exported only into graphs that hold them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...adapters.artifact.hub import located
from ...adapters.artifact.manifest import BaseInfo, GraphWeights
from ...adapters.errors import UnsupportedGraph, UsageError, WrongBase
from ..base.reading import read_graph
from ..foreign.weights import DecoderWeights
from ..manifest import LAYOUT, ExportManifest, read_manifest
from .held import held_weights, holding

if TYPE_CHECKING:
    from ...toolkit.model.vlm import VLM

QUANTISED = ("int4", "int8")


@dataclass(frozen=True)
class GraphBase:
    """A folder with quantised graphs.

    Attributes:
        folder: where they lie.
        manifest: of the graphs before any adapter.
    """

    folder: Path
    manifest: ExportManifest

    @classmethod
    def read(cls, folder: Path) -> GraphBase:
        """A base export.

        Raises:
            UsageError: it holds adapters, or weights that are the checkpoint's.
            InvalidArtifact: a file is missing or was changed.
        """
        folder = located(folder)
        manifest = read_manifest(folder)
        if manifest.mode != "base" or manifest.layout != "onnx":
            raise UsageError(
                f"The graphs in {folder} hold an adapter, or are arranged for a runtime.",
                "Name graphs as `safetykit export MODEL --precision int4 -o BASE` makes them.",
            )
        if manifest.precision not in QUANTISED:
            raise UsageError(
                f"The graphs in {folder} are {manifest.precision}: their weights are the checkpoint's.",
                "Leave it out; it is for int4 and int8.",
            )
        return cls(folder, manifest)

    @property
    def base(self) -> BaseInfo:
        """The model that they were exported from."""
        return self.manifest.base

    @property
    def weights(self) -> GraphWeights:
        """Which weights these are: those in the decoder's data file."""
        return GraphWeights(precision=self.manifest.precision, sha256=self.manifest.files[LAYOUT.data("decoder")])

    def held(self, vlm: VLM) -> AbstractContextManager[None]:
        """Run ``vlm`` with these weights until the block ends; raises as :meth:`standing`."""
        return self.standing(vlm).held(vlm)

    def standing(self, vlm: VLM) -> Standing:
        """The weights, for ``vlm`` to run with.

        Raises:
            WrongBase: the graphs were exported from another model.
            UnsupportedGraph: PyTorch cannot compute what the graph does.
        """
        if self.manifest.base.fingerprint != vlm.fingerprint:
            raise WrongBase(
                f"The graphs in {self.folder} were exported from model {self.manifest.base.fingerprint[:12]}, "
                f"but {vlm.path} is {vlm.fingerprint[:12]}.",
                "Export the base graphs of this model.",
            )
        found = held_weights(vlm, read_graph(self.folder / LAYOUT.decoder))
        if found is None:
            raise UnsupportedGraph(
                f"The decoder in {self.folder} rounds more than weights, or one of them was not found in it.",
                "Use graphs that safetykit or ONNX Runtime GenAI rounded to 4 bits.",
            )
        return Standing(found, self.weights)


@dataclass(frozen=True)
class Standing:
    """The weights that PyTorch runs with: a graph's, or its own.

    Attributes:
        weights: None for its own.
        on: which they are.
    """

    weights: DecoderWeights | None = None
    on: GraphWeights | None = None

    @contextmanager
    def held(self, vlm: VLM) -> Iterator[None]:
        """Run ``vlm`` with them until the block ends."""
        if self.weights is None:
            yield
            return
        with holding(vlm, self.weights, self.on):
            yield


OWN_WEIGHTS = Standing()
