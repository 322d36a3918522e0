"""Fixtures of the tiny LLaVA and its base export, of an export with its documents, and of signed ones."""

import shutil

import pytest
from export_folder import documents, write_folder
from signed_place import Place
from tiny_llava import canary_export, make_adapter, make_detector, make_probe, requests, split_risks, vlm  # noqa: F401


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("card") / "export", documents())
    from safetykit.export.document.card import write_card

    write_card(folder)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(finished, tmp_path / "finished")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("signing"))


@pytest.fixture
def place(made):
    """The same, whose exports are as they were before each test."""
    kept = made.folder / "kept"
    shutil.copytree(made.mine, kept)
    yield made
    shutil.rmtree(made.mine)
    kept.rename(made.mine)
