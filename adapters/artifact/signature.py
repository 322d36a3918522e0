"""Signatures of adapters and exports, by sigstore's library ``model-signing`` (extra ``sign``).

What is signed is the folder's manifest, which names every other file with its SHA-256: one signature covers all of
them, and is checked without reading more than the manifest. The signature lies beside it, as a Sigstore bundle, and the
library's own command reads it too: ``model_signing verify key safetykit.json --signature signature.sigstore.json …``.

The library looks at a certificate as of the day on which it began to be valid, and asks nobody whether it was revoked.
Here it must also be valid now, have the subject that the policy names, and not be among what the policy revokes.
A signature says nothing about when it was made: there is no timestamp in it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import InvalidArtifact, SignatureFailed, UsageError
from ..extras import explained
from .files import SIGNATURE, read_inside, write_atomic
from .policy import Identity, Policy, in_force

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

_LIMIT = 2**20  # bytes of a signature with its certificates
_PASSWORD = "SAFETYKIT_KEY_PASSWORD"


def sign_manifest(
    folder: Path, name: str, key: Path, certificate: Path | None = None, chain: Sequence[Path] = ()
) -> Path:
    """Sign the manifest ``name`` of ``folder``; the password of an encrypted key is read from the environment.

    Args:
        key: PEM, an elliptic-curve private key (P-256, P-384 or P-521).
        certificate: PEM, of this key; ``chain``: the certificates between it and a root.

    Raises:
        UsageError: a file is missing, or the key cannot sign.
    """
    for path in filter(None, (key, certificate, *chain)):
        if not path.is_file():
            raise UsageError(f"There is no file {path}.", "Give PEM files of a key and of its certificates.")
    signing = _library().signing.Config()
    try:
        if certificate is None:
            password = os.environ.get(_PASSWORD)
            signing.use_elliptic_key_signer(private_key=key, password=password.encode() if password else None)
        else:
            between = list(chain) or [certificate]  # the library wants one at least; once more does no harm
            signing.use_certificate_signer(private_key=key, signing_certificate=certificate, certificate_chain=between)
    except Exception as error:  # the library lets through what its parsers raise
        raise UsageError(
            f"{key} cannot sign: {_said(error)}.",
            f"Give an elliptic-curve key in PEM and, if you do, its own certificate; {_PASSWORD} holds a password.",
        ) from None
    with _as_files(name, read_inside(folder, name)) as (manifest, signature):
        signing.sign(manifest, signature)
        write_atomic(folder / SIGNATURE, signature.read_bytes())
    return folder / SIGNATURE


def is_signed(folder: Path) -> bool:
    """Whether a signature lies in the folder, by whomever."""
    return os.path.lexists(folder / SIGNATURE)


def require_accepted(folder: Path, name: str, manifest: bytes) -> str | None:
    """Refuse a folder that the policy in force refuses; before anything else of it is read.

    Args:
        name: of the manifest in the folder; ``manifest``: its bytes.

    Returns:
        The name of the identity that signed it; None where no policy is in force, or it accepts unsigned folders.

    Raises:
        SignatureFailed: there is no signature, it is no accepted identity's, or it is not of this manifest.
        UsageError: the policy cannot be read.
    """
    policy = in_force()
    if policy is None:
        return None
    if not is_signed(folder):
        if policy.unsigned == "accept":
            return None
        raise SignatureFailed(f"{folder} is not signed, and the policy accepts signed folders only.", _ADVICE)
    try:
        signature = read_inside(folder, SIGNATURE, _LIMIT)
    except InvalidArtifact as error:
        raise SignatureFailed(error.message, _ADVICE) from None
    with _as_files(name, manifest, signature) as paths:
        refused = {one.name: _why_not(one, policy, *paths) for one in policy.identities}
    for identity, why in refused.items():
        if why is None:
            return identity
    raise SignatureFailed(
        f"The signature of {folder} is refused: {'; '.join(f'{who}: {why}' for who, why in refused.items())}.", _ADVICE
    )


_ADVICE = "Get the folder from its source again, or ask whom the policy names to sign it with `safetykit sign`."


def _why_not(identity: Identity, policy: Policy, manifest: Path, signature: Path) -> str | None:
    """Why a signature is not this identity's; None if it is."""
    library = _library()
    try:
        verifier = library.verifying.Config().set_hashing_config(library.hashing.Config())
        if identity.key:
            verifier.use_elliptic_key_verifier(public_key=identity.key)
        else:
            verifier.use_certificate_verifier(certificate_chain=identity.chain)
        with redirect_stdout(io.StringIO()):  # it prints notes
            verifier.verify(manifest, signature)
        return _revoked(_public_key(identity.key), policy) if identity.key else _unfit(identity, policy, signature)
    except Exception as error:  # whatever the library's parsers make of a hostile file, it is no signature
        return _said(error)


def _unfit(identity: Identity, policy: Policy, signature: Path) -> str | None:
    """What the library does not ask of a certificate: its subject, today's date, and whether it is revoked."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    given = json.loads(signature.read_bytes())["verificationMaterial"]["x509CertificateChain"]["certificates"]
    chain = [x509.load_der_x509_certificate(base64.b64decode(one["rawBytes"])) for one in given]
    trusted = [one for path in identity.chain for one in x509.load_pem_x509_certificates(path.read_bytes())]
    leaf, now = chain[0], datetime.now(UTC)
    if leaf.subject != x509.Name.from_rfc4514_string(identity.subject or ""):
        return f"the certificate is {leaf.subject.rfc4514_string()}"
    for one in _path(leaf, [*chain[1:], *trusted]):
        called = one.subject.rfc4514_string()
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            return f"the certificate of {called} is valid until {one.not_valid_after_utc:%Y-%m-%d} only"
        for data in (one.public_bytes(Encoding.DER), _key_bytes(one.public_key())):
            if why := _revoked(data, policy):
                return f"{why} ({called})"
    return None


def _path(leaf: Certificate, others: Sequence[Certificate]) -> list[Certificate]:
    """The certificates from ``leaf`` up to the root, as far as they are there; the library has checked that they do."""
    found = [leaf]
    while found[-1].issuer != found[-1].subject:
        issuer = next((one for one in others if _issued(found[-1], one) and one not in found), None)
        if issuer is None:
            break
        found.append(issuer)
    return found


def _issued(one: Certificate, by: Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        one.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _public_key(path: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return _key_bytes(load_pem_public_key(path.read_bytes()))


def _key_bytes(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _revoked(data: bytes, policy: Policy) -> str | None:
    digest = hashlib.sha256(data).hexdigest()
    return f"{digest[:12]}… is revoked" if digest in policy.revoked else None


@contextmanager
def _as_files(name: str, manifest: bytes, signature: bytes = b"") -> Iterator[tuple[Path, Path]]:
    """The very bytes that are looked at, in files of their own, as the library wants them."""
    with TemporaryDirectory(prefix="safetykit-signature-") as folder:
        paths = Path(folder) / name, Path(folder) / SIGNATURE
        for path, data in zip(paths, (manifest, signature), strict=True):
            path.write_bytes(data)
        yield paths


def _said(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(". ")
    return text[:200] or {"InvalidSignature": "it is not this key's"}.get(type(error).__name__, type(error).__name__)


def _library() -> Any:
    try:
        import model_signing
    except ModuleNotFoundError as error:
        raise explained(error) from None
    return model_signing
