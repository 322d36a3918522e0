"""A layout of somebody else's package: this file and its template."""

from __future__ import annotations

from pathlib import Path

from safetykit.export.layouts.files import write_json
from safetykit.export.layouts.layout import RuntimeLayout
from safetykit.export.manifest import GRAPHS


class Outside(RuntimeLayout):
    """Graphs in a folder ``served``, with a file that lists them."""

    name, title = "outside", "A runtime of somebody else's"
    template = Path(__file__).with_name("outside_layout.md.jinja")
    own_loop = True

    def paths(self, models):
        return {name: f"served/{name}.onnx" for name in GRAPHS}

    def finish(self, folder, models, manifest):
        write_json(folder, "served.json", {"graphs": [manifest.graph_file(name) for name in GRAPHS]})
