"""Commands sign, and refuse what the policy refuses."""

import shutil

import pytest
from planted_captions import planted_index
from signed_place import signature_of
from workshop import safetykit

from safetykit import InvalidArtifact, SignatureFailed, trusting
from safetykit.adapters.artifact.files import SIGNATURE
from safetykit.adapters.artifact.signature import sign_manifest
from safetykit.export.commands.verification import sign_folder
from safetykit.export.manifest import read_manifest
from safetykit.toolkit.index.caption_index import CaptionIndex

OPENING = (
    "verify {export}",
    "verify {adapter}",
    "run {export} --prompt hi",
    "eval {export} --data reference",
    "eval reference:mild --data reference --adapter {adapter}",
    "export reference:mild --adapter {adapter} -o {out}",
    "export reference:mild --base-onnx {export} -o {out}",
    "fit sasa reference:mild --data reference --with {adapter} -o {out}",
    "fit care reference:mild --data reference --on {export} -o {out}",
    "lora reference:mild --adapter {adapter} -o {out}",
    "card {export}",
)


BOTH = "--policy {policy} --require-signature"


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        *((line, BOTH) for line in OPENING),
        (OPENING[0], "--policy {policy}"),
        (OPENING[0], "--config {config}"),
    ],
)
def test_every_command_refuses_what_the_policy_refuses(place, line, asked):
    signature_of(place).unlink()
    adapter, config = place.folder / "adapter", place.folder / "run.yaml"
    adapter.mkdir(exist_ok=True)
    (adapter / "manifest.json").write_text("no JSON")
    config.write_text(f"policy: {place.policy}\n")
    names = {"export": place.mine, "adapter": adapter, "policy": place.policy, "config": config}
    done = safetykit(*f"{line} {asked}".format(out=place.folder / "out", **names).split())
    assert done.code == 6, done.err
    assert "is not signed" in done.err


def test_signed_by_a_command_and_accepted_by_another(place):
    signature_of(place).unlink()
    typed = ("--certificate", place.leaf.certificate, "--chain", place.root.certificate, "--json")
    done = safetykit("sign", place.mine, "--key", place.leaf.key, *typed)
    assert done.code == 0, done.err
    assert done.value["signature"] == str(signature_of(place))
    with trusting(place.by_certificate):
        assert read_manifest(place.mine)


def test_an_index_is_signed_and_opened_like_the_others(place, tmp_path):
    planted_index(index := tmp_path / "index", ["a kite", "a club"])
    with trusting(place.policy), pytest.raises(SignatureFailed, match="is not signed"):
        CaptionIndex.load(index)
    with trusting(place.policy):  # what one has just made is one's own
        planted_index(tmp_path / "another", ["a kite"])
    assert sign_folder(index, place.release.key)["kind"] == "index"
    done = safetykit("verify", index, "--policy", place.policy, "--json")
    assert done.code == 0 and done.value["signature"] == "accepted", done.err
    shutil.copyfile(index / SIGNATURE, place.mine / SIGNATURE)  # of another manifest
    with trusting(place.policy):
        assert len(CaptionIndex.load(index)) == 2
        (index / "notes.txt").write_text("x")
        with pytest.raises(InvalidArtifact, match=r"notes\.txt"):
            CaptionIndex.load(index)
        (index / "notes.txt").unlink()
        with pytest.raises(SignatureFailed, match="is refused"):
            read_manifest(place.mine)
    sign_manifest(index, "manifest.json", place.stranger.key)
    done = safetykit("index", "search", index, "--model", "reference:mild", "--text", "kite", "--policy", place.policy)
    assert done.code == 6 and "is refused" in done.err
