"""Signatures: what the policy accepts is opened, and every way around it is refused before anything else is read."""

import json
import shutil
import sys

import pytest
from identities import by_certificate, by_key, policy
from signed_place import MANIFEST, signature_of

from safetykit import InvalidArtifact, OnnxVLM, SignatureFailed, UsageError, trusting
from safetykit.adapters.artifact.files import SIGNATURE
from safetykit.adapters.artifact.policy import POLICY, REQUIRE
from safetykit.adapters.artifact.signature import sign_manifest
from safetykit.export.commands.verification import sign_folder
from safetykit.export.manifest import read_manifest, write_manifest


def edited(place, change):
    body = json.loads(signature_of(place).read_text())
    change(body)
    signature_of(place).write_text(json.dumps(body))


def resealed(place, **change):
    """``mine`` with another manifest that is sealed properly."""
    write_manifest(read_manifest(place.mine, verify=False).model_copy(update=change), place.mine)


def test_a_signature_by_key_is_accepted(place):
    place.opened()


def test_a_signature_by_certificate_is_accepted(place):
    place.certified(place.leaf)
    place.opened(place.by_certificate)


def test_one_of_several_identities_is_enough(place):
    place.opened(policy(place.folder / "two.yaml", by_key(place.stranger), by_key(place.release)))


# Each makes of `mine` what an attacker would, and may name another policy file.
ATTACKS = {
    "unknown key": lambda place: sign_manifest(place.mine, MANIFEST, place.stranger.key) and None,
    "unknown key that claims to be a known one": lambda place: (
        sign_manifest(place.mine, MANIFEST, place.stranger.key)
        and edited(place, lambda body: body["verificationMaterial"].update(known_material(place)))
    ),
    "no hint of the key, which the library only warns of": lambda place: (
        sign_manifest(place.mine, MANIFEST, place.stranger.key)
        and edited(place, lambda body: body["verificationMaterial"]["publicKey"].pop("hint"))
    ),
    "stripped signature": lambda place: signature_of(place).unlink(),
    "empty signature": lambda place: signature_of(place).write_bytes(b"") and None,
    "signature that is a list": lambda place: signature_of(place).write_text("[]") and None,
    "signature nested deeply": lambda place: signature_of(place).write_text("[" * 100_000) and None,
    "signature of 2 MB": lambda place: signature_of(place).write_bytes(b" " * 2**21) and None,
    "signature of another export": lambda place: shutil.copy(place.another / SIGNATURE, signature_of(place)) and None,
    "payload of another export under this signature": lambda place: edited(
        place,
        lambda body: body["dsseEnvelope"].update(
            payload=json.loads((place.another / SIGNATURE).read_text())["dsseEnvelope"]["payload"]
        ),
    ),
    "link to another signature": lambda place: (
        signature_of(place).unlink() or signature_of(place).symlink_to(place.another / SIGNATURE)
    ),
    "changed and sealed again": lambda place: resealed(place, enforce=True),
    "another threshold, sealed again": lambda place: resealed(place, precision="fp16"),
    "extra file, sealed again": lambda place: (place.mine / "extra.json").write_text("{}") and resealed(place),
    "removed file, sealed again": lambda place: (place.mine / "sweep.json").unlink() or resealed(place),
    "changed file, sealed again": lambda place: (place.mine / "decoder.onnx").write_bytes(b"x") and resealed(place),
    "renamed file, sealed again": lambda place: (
        (place.mine / "sweep.json").rename(place.mine / "swept.json") and resealed(place)
    ),
    "certificate of another root": lambda place: place.certified(place.forged) or place.by_certificate,
    "certificate of another subject": lambda place: (
        place.certified(place.leaf)
        or policy(place.folder / "subject.yaml", by_certificate(place.root, "CN=somebody else"))
    ),
    "root's own certificate": lambda place: place.certified(place.root) or place.by_certificate,
    "expired certificate": lambda place: (
        place.certified(place.expired) or policy(place.folder / "old.yaml", by_certificate(place.root, "CN=old"))
    ),
    "revoked certificate": lambda place: (
        place.certified(place.leaf)
        or policy(
            place.folder / "revoked.yaml", by_certificate(place.root, "CN=build"), revoked=[place.leaf.fingerprint]
        )
    ),
    "revoked root": lambda place: (
        place.certified(place.leaf)
        or policy(place.folder / "root.yaml", by_certificate(place.root, "CN=build"), revoked=[place.root.fingerprint])
    ),
    "revoked key": lambda place: policy(
        place.folder / "key.yaml", by_key(place.release), revoked=[key_digest(place.release)]
    ),
    "key where a certificate is asked for": lambda place: place.by_certificate,
    "certificate where a key is asked for": lambda place: place.certified(place.leaf),
}


def known_material(place):
    return json.loads((place.another / SIGNATURE).read_text())["verificationMaterial"]


def key_digest(signer):
    import hashlib

    from cryptography.hazmat.primitives import serialization

    der, spki = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(signer.own.public_key().public_bytes(der, spki)).hexdigest()


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_on_the_signature_is_refused(place, attack, capsys):
    file = ATTACKS[attack](place)
    with pytest.raises(SignatureFailed) as refused:
        place.opened(file)
    assert refused.value.exit_code == 6
    assert str(place.mine) in refused.value.message and refused.value.next_step
    assert not capsys.readouterr().out


# The signature stays good, and the folder is not what was signed.
SPOILT = {
    "extra file": lambda folder: (folder / "extra.txt").write_text("x"),
    "extra folder": lambda folder: (folder / "more").mkdir() or (folder / "more" / "x.json").write_text("{}"),
    "removed file": lambda folder: (folder / "sweep.json").unlink(),
    "changed file": lambda folder: (folder / "decoder.onnx").write_bytes(b"decoded"),
    "renamed files": lambda folder: (
        (folder / "embed_tokens.onnx").rename(folder / "x") and (folder / "x").rename(folder / "vision_encoder.onnx")
    ),
    "file become a link": lambda folder: (
        (folder / "decoder.onnx").rename(folder.parent / "away")
        and (folder / "decoder.onnx").symlink_to(folder.parent / "away")
    ),
}


@pytest.mark.parametrize("change", SPOILT)
def test_a_good_signature_of_other_files_is_refused(place, change):
    SPOILT[change](place.mine)
    with pytest.raises(InvalidArtifact):
        place.opened()


BAD_POLICIES = {
    "empty file": b"",
    "no identities": b"identities: []\n",
    "identity without a key": b"identities:\n- name: me\n",
    "chain without a subject": b"identities:\n- {name: me, chain: [root.pem]}\n",
    "key that is not there": b"identities:\n- {name: me, key: nowhere.pub}\n",
    "unknown word": b"identities:\n- {name: release, key: release.pub}\nunsigned_ok: true\n",
    "no YAML": b"identities: [\n",
    "no text": b"\xff\xfe\x00",
    "Python object": b"!!python/object/apply:os.system ['true']\n",
}


@pytest.mark.parametrize("kind", BAD_POLICIES)
def test_a_policy_that_says_nothing_lets_nothing_pass(place, kind):
    file = place.folder / "bad.yaml"
    file.write_bytes(BAD_POLICIES[kind])
    with pytest.raises(UsageError, match="bad.yaml"):
        place.opened(file)


def test_a_policy_that_is_missing_lets_nothing_pass(place, monkeypatch):
    with pytest.raises(UsageError, match="cannot be read"):
        place.opened(place.folder / "nowhere.yaml")
    monkeypatch.setenv(POLICY, str(place.folder / "nowhere.yaml"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_manifest(place.mine)


def test_the_environment_holds_for_everything(place, monkeypatch):
    monkeypatch.setenv(REQUIRE, "1")
    with pytest.raises(UsageError, match="no policy says whose"):
        read_manifest(place.mine)
    monkeypatch.setenv(POLICY, str(place.policy))
    read_manifest(place.mine)
    signature_of(place).unlink()
    with pytest.raises(SignatureFailed, match="is not signed"):
        read_manifest(place.mine)
    monkeypatch.setenv(REQUIRE, "perhaps")
    with pytest.raises(UsageError, match="neither on nor off"):
        read_manifest(place.mine)


def test_unsigned_folders_pass_where_the_policy_says_so_and_nobody_requires_a_signature(place):
    file = policy(place.folder / "lenient.yaml", by_key(place.release), unsigned="accept")
    place.opened(file)
    signature_of(place).unlink()
    place.opened(file)
    with trusting(file, require_signature=True), pytest.raises(SignatureFailed, match="is not signed"):
        read_manifest(place.mine)
    sign_manifest(place.mine, MANIFEST, place.stranger.key)
    with pytest.raises(SignatureFailed):
        place.opened(file)


def test_nothing_is_read_before_the_policy_has_spoken(place, monkeypatch):
    """A manifest that is no JSON shows that the signature was looked at first; so does OnnxVLM without its files."""
    (place.mine / MANIFEST).write_bytes(b"no json")
    with pytest.raises(SignatureFailed):
        place.opened()
    with pytest.raises(SignatureFailed):
        OnnxVLM.from_pretrained(place.mine, policy=place.policy)
    with pytest.raises(UsageError, match="not compared with the manifest"):
        OnnxVLM.from_pretrained(place.mine, policy=place.policy, verify=False)


def test_a_key_with_a_password_signs(place, monkeypatch):
    from cryptography.hazmat.primitives import serialization

    locked = place.folder / "locked.key"
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    best = serialization.BestAvailableEncryption(b"word")
    locked.write_bytes(place.release.own.private_bytes(pem, pkcs8, best))
    with pytest.raises(UsageError, match="SAFETYKIT_KEY_PASSWORD"):
        sign_folder(place.mine, locked)
    monkeypatch.setenv("SAFETYKIT_KEY_PASSWORD", "word")
    sign_folder(place.mine, locked)
    place.opened()


def test_without_the_library_nothing_passes(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(UsageError, match="needs model-signing, which is not installed") as refused:
        place.opened()
    assert refused.value.next_step == 'pip install "safetykit[sign]"'
    with pytest.raises(UsageError, match="needs model-signing"):
        sign_folder(place.mine, place.release.key)


def test_what_cannot_be_signed_is_refused(place):
    with pytest.raises(UsageError, match="no file"):
        sign_folder(place.mine, place.folder / "nowhere.key")
    with pytest.raises(UsageError, match="cannot sign"):
        sign_folder(place.mine, place.release.public)
    with pytest.raises(UsageError, match="cannot sign"):  # another's certificate
        sign_folder(place.mine, place.release.key, place.leaf.certificate)
    with pytest.raises(UsageError, match="without --certificate"):
        sign_folder(place.mine, place.release.key, chain=[place.root.certificate])
    (place.mine / "decoder.onnx").write_bytes(b"x")
    with pytest.raises(InvalidArtifact, match="decoder.onnx"):
        sign_folder(place.mine, place.release.key)
