"""Where the graphs of the unmodified model lie in an export folder."""

from __future__ import annotations

from pathlib import Path

from ...adapters.errors import UsageError
from ..manifest import GRAPHS, LAYOUT, Graph


def base_graphs(folder: Path) -> dict[Graph, Path]:
    """Graphs of the unmodified model in an export folder; a graph that is not among them has no adapter.

    Raises:
        UsageError: there is none.
    """
    found = {name: path for name in GRAPHS if (path := folder / LAYOUT.base_graph(name)).is_file()}
    if not found:
        raise UsageError(
            f"{folder} holds no graphs of the model without adapters (*.base.onnx).",
            "Exports of the layout onnx that have adapters hold them.",
        )
    return found
