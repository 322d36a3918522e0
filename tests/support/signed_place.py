"""Signers, and exports that they signed."""

from pathlib import Path

from export_folder import documents, write_folder
from identities import Signer, by_certificate, by_key, policy

from safetykit import trusting
from safetykit.adapters.artifact.files import SIGNATURE
from safetykit.adapters.artifact.signature import sign_manifest
from safetykit.export.commands.verification import sign_folder
from safetykit.export.manifest import read_manifest, write_manifest

MANIFEST = "safetykit.json"


class Place:
    """Signers, and two signed exports: ``mine`` and ``another``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.release, self.stranger = Signer(folder, "release"), Signer(folder, "stranger")
        self.root, self.other_root = Signer(folder, "root"), Signer(folder, "other-root")
        self.leaf = Signer(folder, "build", self.root)
        self.expired = Signer(folder, "old", self.root, starts=-0.9, days=0.5)
        self.forged = Signer(folder, "forged", self.other_root)
        self.mine, self.another = (write_folder(folder / name, documents()) for name in ("mine", "another"))
        (self.another / "config.json").write_text('{"model_type": "other"}\n')
        write_manifest(read_manifest(self.another, verify=False), self.another)
        for one in (self.mine, self.another):
            sign_folder(one, self.release.key)
        self.policy = policy(folder / "policy.yaml", by_key(self.release))
        self.by_certificate = policy(folder / "certificates.yaml", by_certificate(self.root, "CN=build"))

    def certified(self, signer: Signer) -> None:
        """Sign ``mine`` anew, with a certificate."""
        sign_manifest(self.mine, MANIFEST, signer.key, signer.certificate)

    def opened(self, file: Path | None = None) -> None:
        with trusting(file or self.policy):
            read_manifest(self.mine)


def signature_of(place):
    return place.mine / SIGNATURE
