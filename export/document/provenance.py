"""``provenance.json``: from what an export was built, with which settings and packages.

An in-toto statement (https://in-toto.io/Statement/v1) with the predicate of SLSA (https://slsa.dev/provenance/v1). Its
subjects are the files of the folder, but those that are written from it: card, report and the list of components. There
is no time in it, so that the same export is the same bytes; who vouches for it, a signature says.

All of it follows from the manifest, ``export_options.json`` and :class:`Built`, and is made again where it is checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from ...adapters.artifact.files import read_inside
from ...adapters.artifact.manifest import Sha256, Strict, canonical_json
from ...adapters.errors import InvalidArtifact
from ..manifest import LAYOUT, ExportManifest

OPTIONS = "export_options.json"  # as they were given or defaulted, for whoever has to make the export again
_BUILD = "urn:safetykit:export:v1"
_EXTRAS = ("", "fit", "cpu", "gpu")  # whose packages make an export
_LIMIT = 16 * 2**20


class Built(Strict):
    """What the folder's other files do not say.

    Attributes:
        adapters: SHA-256 of each adapter's manifest, its identity.
        packages: versions of the packages that were installed, by name.
    """

    adapters: tuple[Sha256, ...]
    packages: dict[str, str]


def installed() -> dict[str, str]:
    """Versions of safetykit and of the packages it makes exports with."""
    from packaging.requirements import Requirement

    found = {"safetykit": version("safetykit")}
    for line in requires("safetykit") or ():
        one = Requirement(line)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in _EXTRAS):
            try:
                found[one.name] = version(one.name)
            except PackageNotFoundError:
                continue
    return found


def subjects(files: Mapping[str, str]) -> dict[str, str]:
    """The files that a statement is about, with their SHA-256."""
    written = {LAYOUT.provenance, LAYOUT.sbom, LAYOUT.card, LAYOUT.report}
    return {name: digest for name, digest in sorted(files.items()) if name not in written}


def statement(manifest: ExportManifest, files: Mapping[str, str], options: Mapping[str, Any], built: Built) -> bytes:
    """The statement's JSON.

    Args:
        files: of the folder, with their SHA-256.
        options: of the export.
    """
    base = manifest.base
    sources: list[dict[str, Any]] = [
        {
            "name": "base",
            "digest": {"safetykit-fingerprint": base.fingerprint},
            "annotations": {"architecture": base.architecture, "layers": base.n_layers, "width": base.d_model},
        }
    ]
    for at, (info, digest) in enumerate(zip(manifest.adapters, built.adapters, strict=True), 1):
        about = {"method": info.method, "variant": info.variant, "settings": info.hyperparameters, "seed": info.seed}
        sources.append({"name": f"adapter {at}", "digest": {"sha256": digest}, "annotations": about})
        sources.append({"name": f"records of adapter {at}", "digest": {"safetykit-records": info.data.sha256}})
    sources += [
        {"name": name, "uri": f"pkg:pypi/{name.lower()}@{found}"} for name, found in sorted(built.packages.items())
    ]
    body = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in subjects(files).items()],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD,
                "externalParameters": dict(options),
                "resolvedDependencies": sources,
            },
            "runDetails": {"builder": {"id": _BUILD, "version": dict(manifest.versions)}},
        },
    }
    return canonical_json(body)


def read_options(folder: Path) -> dict[str, Any]:
    """``export_options.json``.

    Raises:
        InvalidArtifact: it is missing or no JSON object.
    """
    return _object(folder, OPTIONS)


def read_built(folder: Path, manifest: ExportManifest) -> Built:
    """What a folder's statement says that nothing else does.

    Args:
        manifest: of the folder, whose adapters it must be about.

    Raises:
        InvalidArtifact: it is missing, or not such a statement.
    """
    try:
        sources = _object(folder, LAYOUT.provenance)["predicate"]["buildDefinition"]["resolvedDependencies"]
        packages = [one["uri"].removeprefix("pkg:pypi/").partition("@") for one in sources if "uri" in one]
        names = [one["name"] for one in sources if "uri" in one]
        digests = [one["digest"]["sha256"] for one in sources if "sha256" in one.get("digest", {})]
        if len(digests) != len(manifest.adapters):
            raise ValueError("it is of other adapters")
        found = {name: found for name, (_, _, found) in zip(names, packages, strict=True)}
        return Built(adapters=tuple(digests), packages=found)
    except (LookupError, TypeError, AttributeError, ValueError):
        raise InvalidArtifact(
            f"{folder / LAYOUT.provenance} is no statement that safetykit wrote.", "Export the model again."
        ) from None


def _object(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads(read_inside(folder, name, _LIMIT))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidArtifact(f"{folder / name} is not JSON.", "Export the model again.")
    return found
