"""Fixtures of the tiny LLaVA and its base export."""

import pytest
from tiny_llava import make_adapter, make_detector, make_probe, requests, split_risks, vlm  # noqa: F401


@pytest.fixture
def templated(random_vlm, monkeypatch):
    """Inputs of a random VLM with another chat template."""

    def use(template):
        monkeypatch.setattr(random_vlm.inputs.processor, "chat_template", template)
        return random_vlm.inputs

    return use
