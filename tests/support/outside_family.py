"""A family of somebody else's package: this file; its case is :func:`write_checkpoint`."""

from __future__ import annotations

import json
from pathlib import Path

from safetykit.toolkit.families.llava import Llava


class Outside(Llava):
    """LLaVA under another model type."""

    name, title = "outside_vlm", "A VLM of somebody else's"


def write_checkpoint(source: Path, folder: Path) -> Path:
    """A configuration of this type, made from a LLaVA's."""
    folder.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text()) | {"model_type": Outside.name}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
