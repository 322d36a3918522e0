"""Checkpoints whose floats have another type than those they are copies of."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def in_dtype(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """A copy of a checkpoint in ``dtype``."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix != ".safetensors" and path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    for part in ("text_config", "vision_config"):
        config[part].pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder
