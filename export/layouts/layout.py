"""What a layout says about itself: for which runtime it is, what that can carry, and how its folder is arranged.

A layout needs neither torch nor ONNX at import: help enumerates layouts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..manifest import GRAPHS, LAYOUT, ExportManifest, Graph

if TYPE_CHECKING:
    import onnx_ir as ir

    from ...toolkit.model.requests import Inputs
    from ..parity.gap import Gap
    from ..runtime.onnx_vlm import OnnxVLM
    from .interface import Interface

_TEMPLATES = Path(__file__).parents[2] / "model_cards"


class RuntimeLayout:
    """One layout; subclasses say what is special about theirs.

    Attributes:
        name: how ``--layout`` and manifests call it.
        title: its runtime, for help and cards.
        template: what a card says about running the folder, in Jinja's Markdown; the manifest is ``m``, ``io.json``
            is ``io``.
        own_loop: its runtime drives the graphs by itself: it feeds token ids, pictures and the KV cache, and reads the
            logits. It does not ask twice, looks at no risk and puts no retrieved text before a prompt.
        embeddings_only: its runtime feeds the decoder nothing but embeddings, masks, positions and the cache.
        plain_graphs: its graphs are those of the layout ``onnx``, in other places, so that ``run_ort.py`` runs them.
        some_families: made only for families that state something about it in ``Family.runs_in``.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    template: ClassVar[Path | None] = None
    own_loop: ClassVar[bool] = False
    embeddings_only: ClassVar[bool] = False
    plain_graphs: ClassVar[bool] = False
    some_families: ClassVar[bool] = False

    def paths(self, models: Mapping[Graph, ir.Model]) -> dict[Graph, str]:
        """Where the graphs go; by default they stay."""
        return {name: LAYOUT.graph(name) for name in GRAPHS}

    def data_name(self, graph: str, number: int) -> str:
        """Name of data file number 0 (the base's weights) or 1 (the adapter's) of a graph file."""
        return f"{graph}.data" if number == 0 else f"{Path(graph).stem}.adapter.data"

    def change(self, folder: Path, models: Mapping[Graph, ir.Model], manifest: ExportManifest) -> None:
        """Further changes of the graphs, in place, and graphs of its own.

        Raises:
            UsageError: the runtime cannot run these graphs.
        """

    def finish(self, folder: Path, models: Mapping[Graph, ir.Model], manifest: ExportManifest) -> None:
        """Write the runtime's own files."""

    def beside(self, folder: Path, found: Interface) -> Mapping[str, bytes]:
        """The runtime's own files that follow from ``io.json``, which is written: data by path in the folder."""
        return {}

    def compare(self, vlm: OnnxVLM, inputs: Inputs) -> Gap | None:
        """What parity of the arranged folder asks beside logits and scores, such as a graph of the layout's own."""
        return None

    def facts(self, family: str | None) -> Any:
        """What a family states about this layout; None if nothing.

        Args:
            family: its model type.
        """
        from ...toolkit.families import families

        found = families().get(family or "")
        return None if found is None else found.runs_in.get(self.name)

    def made_for(self) -> Collection[str]:
        """The families that state something about this layout."""
        from ...toolkit.families import families

        return [name for name, family in families().items() if self.name in family.runs_in]

    @classmethod
    def own_template(cls, name: str) -> Path:
        """A template that safetykit brings along."""
        return _TEMPLATES / f"running_{name}.md.jinja"
