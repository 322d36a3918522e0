"""A LLaVA with random weights, for what does not depend on what a model has learnt."""

from pathlib import Path

import pytest
import torch
from tiny_llava import (  # noqa: F401  fixtures, once a session for all folders
    base_folder,
    int4_folder,
    make_checkpoint,
)

torch.set_num_threads(1)  # the test models are so small that threads cost more than they give


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory) -> Path:
    """A checkpoint folder of the reference VLM's architecture, untrained."""
    from safetykit.toolkit.reference.model import build_model, build_processor, build_tokenizer

    folder = tmp_path_factory.mktemp("random") / "model"
    build_model(seed=1).save_pretrained(folder)
    build_processor(build_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_vlm(random_checkpoint):
    from safetykit.toolkit.model.vlm import VLM

    return VLM.from_pretrained(random_checkpoint)
