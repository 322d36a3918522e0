"""Keys, certificates and policies of people who sign."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

DAY = timedelta(days=1)


def name_of(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


class Signer:
    """A key with its public half, and its certificate by ``issuer`` or by itself; all of them in ``folder``."""

    def __init__(self, folder: Path, name: str, issuer: Signer | None = None, *, starts: float = -1, days: float = 10):
        self.name, self.own = name, ec.generate_private_key(ec.SECP256R1())
        self.key, self.public, self.certificate = (folder / f"{name}.{end}" for end in ("key", "pub", "pem"))
        self.subject = f"CN={name}"
        begin = datetime.now(UTC) + starts * DAY
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
        )
        usage |= {"encipher_only": False, "decipher_only": False}
        made = (
            x509.CertificateBuilder()
            .subject_name(name_of(name))
            .issuer_name(name_of(issuer.name if issuer else name))
            .public_key(self.own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + days * DAY)
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(digital_signature=True, key_cert_sign=issuer is None, **usage), critical=True)
            .sign(issuer.own if issuer else self.own, hashes.SHA256())
        )
        self.made = made
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        self.key.write_bytes(self.own.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public.write_bytes(self.own.public_key().public_bytes(pem, spki))
        self.certificate.write_bytes(made.public_bytes(pem))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate."""
        return self.made.fingerprint(hashes.SHA256()).hex()


def policy(path: Path, *identities: dict[str, Any], **further: Any) -> Path:
    """A policy file."""
    path.write_text(yaml.safe_dump({"identities": list(identities), **further}))
    return path


def by_key(one: Signer) -> dict[str, Any]:
    return {"name": one.name, "key": str(one.public)}


def by_certificate(root: Signer, subject: str) -> dict[str, Any]:
    return {"name": subject, "chain": [str(root.certificate)], "subject": subject}
