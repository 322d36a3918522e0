"""Folders in the Hub's cache are read like any other; no link leads out of their own repository."""

import os

import huggingface_hub
import pytest

from safetykit.adapters import Adapter
from safetykit.adapters.artifact.hub import located, name_of, plain_file, snapshot_of, weights_folder
from safetykit.adapters.errors import InvalidArtifact, UsageError
from safetykit.bench.zoo.hub_cache import REVISION, in_cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def snapshot(cache, tmp_path):
    folder = tmp_path / "source"
    (folder / "part").mkdir(parents=True)
    (folder / "one.txt").write_text("one")
    (folder / "part" / "two.txt").write_text("two")
    return in_cache(folder, cache, "org/name")


def test_files_of_a_snapshot_are_their_blobs(snapshot):
    for name, text in (("one.txt", "one"), ("part/two.txt", "two")):
        assert plain_file(snapshot, name).read_text() == text
        assert not plain_file(snapshot, name).is_symlink()
    assert plain_file(snapshot / "part", "two.txt").read_text() == "two"  # an artifact may be a part of a repository


def test_a_link_to_the_snapshot_itself_is_followed(snapshot, tmp_path):
    (tmp_path / "mine").symlink_to(snapshot)
    assert plain_file(tmp_path / "mine", "one.txt").read_text() == "one"


def other_repository(snapshot, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "x").write_text("x")
    return next((in_cache(folder, snapshot.parents[2], "org/other").parents[1] / "blobs").iterdir())


def outside(snapshot, tmp_path):
    (tmp_path / "secret").write_text("x")
    return tmp_path / "secret"


def climbs(snapshot, tmp_path):
    outside(snapshot, tmp_path)
    return os.path.relpath(snapshot.parents[1] / "blobs", snapshot) + "/../../../secret"


def another_file(snapshot, tmp_path):
    return snapshot / "one.txt"


def linked_blob(snapshot, tmp_path):
    blob = snapshot.parents[1] / "blobs" / "f"
    blob.symlink_to(outside(snapshot, tmp_path))
    return blob


def below_the_blobs(snapshot, tmp_path):
    folder = snapshot.parents[1] / "blobs" / "deeper"
    folder.mkdir()
    (folder / "x").write_text("x")
    return folder / "x"


@pytest.mark.parametrize(
    "target",
    [other_repository, outside, climbs, another_file, linked_blob, below_the_blobs],
    ids=lambda one: one.__name__,
)
def test_a_link_elsewhere_is_refused(snapshot, tmp_path, target):
    (snapshot / "bad").symlink_to(target(snapshot, tmp_path))
    with pytest.raises(InvalidArtifact, match="bad is a link"):
        plain_file(snapshot, "bad")


def test_a_dangling_link_is_missing(snapshot):
    (snapshot / "gone").symlink_to("../../blobs/gone")
    with pytest.raises(InvalidArtifact, match="gone is missing"):
        plain_file(snapshot, "gone")


def test_a_linked_folder_is_refused(snapshot, tmp_path):
    (snapshot / "linked").symlink_to(snapshot / "part")
    with pytest.raises(InvalidArtifact, match="is a link"):
        plain_file(snapshot, "linked/two.txt")


@pytest.mark.parametrize("name", ["models-org", "cache", "models"])
def test_folders_that_only_look_like_a_cache_are_none(tmp_path, name):
    """``blobs`` beside ``snapshots`` is not enough: a repository's folder says its kind and name."""
    folder = tmp_path / name / "snapshots" / "r"
    blobs = tmp_path / name / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "x").write_text("x")
    (folder / "x").symlink_to("../../blobs/x")
    assert snapshot_of(folder) is None
    with pytest.raises(InvalidArtifact, match="x is a link"):
        plain_file(folder, "x")


def test_blobs_that_are_a_link_are_refused(snapshot, tmp_path):
    blobs = snapshot.parents[1] / "blobs"
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidArtifact, match="is a link"):
        plain_file(snapshot, "one.txt")


def test_an_id_is_found_in_the_cache(snapshot):
    assert located("org/name") == located(f"org/name@{REVISION}") == located("org/name@main") == snapshot
    assert name_of(snapshot) == name_of(snapshot / "part") == "org/name"
    assert weights_folder(snapshot) == snapshot.parents[1] / "blobs"


def test_a_path_wins_over_an_id(snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.makedirs("org/name")
    assert str(located("org/name")) == "org/name"
    assert name_of(tmp_path / "org" / "name") == "name"
    assert weights_folder(tmp_path / "org") == tmp_path / "org"


@pytest.mark.parametrize(
    "text", ["folder", "./org/name", "/org/name", "a/b/c", "org/na me", "org--x/name", "reference:mild", ""]
)
def test_what_is_no_id_stays_a_path(cache, text):
    assert str(located(text)) == (text.removeprefix("./") or ".")


@pytest.mark.parametrize(
    ("text", "command"),
    [("org/absent", "`hf download org/absent`"), ("org/name@v2", "`hf download org/name --revision v2`")],
)
def test_an_id_that_is_not_there_names_the_download(snapshot, text, command):
    with pytest.raises(UsageError, match=f"no folder {text}, and the cache .* {command}"):
        located(text)
    with pytest.raises(UsageError, match=command):
        Adapter.load(text)
