"""``sbom.cdx.json``: the components of an export, as CycloneDX 1.6 (https://cyclonedx.org), by its own library.

Listed are the base and the adapters as models, the folder's files, and Python packages: those that running the folder
takes as required, those that made it as excluded from what is deployed. No time and no random number is in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from ..manifest import ExportManifest
from .facts import CardFacts
from .provenance import Built, subjects

# What run_ort.py imports.
_RUNS = ("numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "pillow")
_MODEL = ComponentType.MACHINE_LEARNING_MODEL


def components(
    manifest: ExportManifest, files: Mapping[str, str], facts: CardFacts | None, built: Built, digest: str
) -> bytes:
    """The list of components as JSON.

    Args:
        files: of the folder, with their SHA-256.
        facts: name and licence of the base.
        digest: SHA-256 of the folder's ``provenance.json``, which stands for this export.
    """
    name = facts.base_model if facts else manifest.base.architecture
    licences = [DisjunctiveLicense(name=facts.base_license)] if facts and facts.base_license else []
    export = Component(name=f"export of {name}", type=_MODEL, bom_ref="export", licenses=licences)
    base = Component(
        name=name,
        type=_MODEL,
        bom_ref="base",
        licenses=licences,
        properties=_properties(fingerprint=manifest.base.fingerprint, architecture=manifest.base.architecture),
    )
    parts = [base]
    for at, (info, one) in enumerate(zip(manifest.adapters, built.adapters, strict=True), 1):
        about = _properties(variant=info.variant, records=info.data.sha256)
        parts.append(
            Component(name=info.method, type=_MODEL, bom_ref=f"adapter-{at}", hashes=[_sha256(one)], properties=about)
        )
    parts += [
        Component(name=file, type=ComponentType.FILE, bom_ref=f"file:{file}", hashes=[_sha256(one)])
        for file, one in subjects(files).items()
    ]
    for package, found in sorted(built.packages.items()):
        purl = PackageURL("pypi", name=package.lower(), version=found)
        scope = ComponentScope.REQUIRED if package.lower() in _RUNS else ComponentScope.EXCLUDED
        parts.append(
            Component(
                name=package,
                version=found,
                type=ComponentType.LIBRARY,
                bom_ref=str(purl),
                purl=purl,
                scope=scope,
            )
        )
    bom = Bom(components=parts, serial_number=uuid5(NAMESPACE_URL, f"urn:sha256:{digest}"))
    bom.metadata.timestamp = None  # type: ignore[assignment]  # the schema leaves it open, the library's type does not
    bom.metadata.component = export
    bom.register_dependency(export, parts)
    return (JsonV1Dot6(bom).output_as_string(indent=2) + "\n").encode()


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _properties(**values: str) -> Iterable[Property]:
    return [Property(name=f"safetykit:{name}", value=value) for name, value in values.items()]
