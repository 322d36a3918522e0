"""A family of somebody else's package: the class is the package's file; below it, a checkpoint of such a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from safetykit.toolkit.families.llava import Llava


class Outside(Llava):
    """LLaVA under another model type."""

    name, title = "outside_vlm", "A VLM of somebody else's"


def write_checkpoint(source: Path, folder: Path) -> Path:
    """A LLaVA's checkpoint under the other type, which transformers then knows, too."""
    from transformers import (
        AutoConfig,
        AutoModelForImageTextToText,
        AutoProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    class Config(LlavaConfig):
        model_type = Outside.name

    class Model(LlavaForConditionalGeneration):
        config_class = Config

    AutoConfig.register(Outside.name, Config, exist_ok=True)
    AutoModelForImageTextToText.register(Config, Model, exist_ok=True)
    AutoProcessor.register(Config, LlavaProcessor, exist_ok=True)
    shutil.copytree(source, folder)
    config = json.loads((source / "config.json").read_text()) | {"model_type": Outside.name}
    (folder / "config.json").write_text(json.dumps(config))
    # Under the names of the model itself: transformers knows the older ones for the types that it has.
    tensors = LlavaForConditionalGeneration.from_pretrained(source).state_dict()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
