"""An empty folder for a data set, and a picture in a file."""

import pytest
from asking import PICTURE


@pytest.fixture
def folder(tmp_path):
    (path := tmp_path / "published").mkdir()
    return path


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "noise.png"
    PICTURE.save(path)
    return path
