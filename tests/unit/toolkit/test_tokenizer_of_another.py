"""A tokenizer that gives tokens which the model does not have."""

import json
import shutil

import pytest

from safetykit import InvalidArtifact, Request
from safetykit.toolkit.model.inputs import InputProcessor


def test_its_tokens_are_refused_before_the_model_looks_them_up(random_checkpoint, tmp_path):
    folder = shutil.copytree(random_checkpoint, tmp_path / "other")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["kite"] = 99_999
    path.write_text(json.dumps(tokenizer))
    inputs = InputProcessor.from_pretrained(folder)
    assert inputs.prepare([Request("what is this ?")]).input_ids.size
    with pytest.raises(InvalidArtifact, match="gives token 99999, and the model knows") as caught:
        inputs.prepare([Request("what is a kite ?")])
    assert "another model's" in caught.value.next_step
