"""A model whose pictures need torchvision says so in a whole sentence, with what to install."""

import importlib.util
import json
import shutil

import pytest


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is here")
@pytest.mark.parametrize("made", ["Cohere2Vision", "Pixtral", "Llama4"])
def test_what_needs_torchvision_names_the_extra(call, random_checkpoint, tmp_path, made):
    folder = tmp_path / "model"
    shutil.copytree(random_checkpoint, folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    settings |= {"processor_class": f"{made}Processor"}
    settings["image_processor"]["image_processor_type"] = f"{made}ImageProcessor"
    (folder / "processor_config.json").write_text(json.dumps(settings))
    code, _, err = call("inspect", folder)
    assert code == 2
    assert "The processor of this model (llava) needs torchvision" in err and "safetykit[torchvision]" in err
