"""The model card and the report of an export folder: written from its JSON files, and checked against them.

``README.md`` and ``report.html`` are pure functions of the folder's JSON files. The manifest names
every file with its digest; so an edited number fails against the digest, and one whose digest was
edited as well fails against what the JSON yields.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from markupsafe import Markup

from ...adapters.artifact.files import read_inside, require_hashes, write_atomic
from ...adapters.errors import InvalidArtifact
from ...adapters.extras import IN_A_CLONE
from ..layouts.interface import Interface
from ..layouts.registry import get_layout
from ..manifest import LAYOUT, ExportManifest, hash_folder, read_manifest, write_manifest
from .figures import LATENCY, Figures, read_figures
from .front_matter import front_matter
from .provenance import Built, read_built, read_options, statement
from .rendering import markdown_templates

_LEADING = 5  # trials in the card; all of them are in the report
_LIMIT = 64 * 2**20


def render_card(folder: Path) -> str:
    """The card's Markdown; nothing but the folder's JSON files goes into it.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: a JSON file is damaged; named.
    """
    return render_card_from(read_figures(Path(folder)))


def render_card_from(figures: Figures) -> str:
    """See :func:`render_card`."""
    template = markdown_templates().get_template("export_card.md.jinja")
    header = Markup(front_matter(figures))
    return template.render(
        figures=figures,
        header=header,
        leading=_LEADING,
        layout=LAYOUT,
        latency_file=LATENCY,
        install=Markup(IN_A_CLONE.format(extras="cpu")),
        running=running_words(figures.manifest, figures.interface),
    )


def running_words(manifest: ExportManifest, interface: Interface | None = None) -> Markup | None:
    """What its layout says about running the folder, in the light of its ``io.json``; None for the plain one."""
    template = get_layout(manifest.layout).template
    if template is None:
        return None
    return Markup(markdown_templates().from_string(template.read_text("utf-8")).render(m=manifest, io=interface))


def write_card(folder: Path, built: Built | None = None) -> ExportManifest:
    """Write card, report, provenance and components from the JSON files that are in the folder, and seal it again.

    Documents that the manifest does not name yet, such as a new ``latency.json``, become part of the export.

    Args:
        built: what it was built from; by default as its provenance says, and without one none is written.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: a file was changed since it was sealed, or does not belong to an export.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, verify=False)
    written = {LAYOUT.card, LAYOUT.report}
    # Sealing blesses every byte in the folder, so all that is not made here must be what was sealed before.
    require_hashes(folder, {name: digest for name, digest in manifest.files.items() if name not in written})
    # Other than JSON, which adapters may bring along, nothing is added to a finished export.
    known, found = {*manifest.files, *written}, hash_folder(folder)
    if stray := sorted(name for name in found if name not in known and not name.endswith(".json")):
        raise InvalidArtifact(f"{folder / stray[0]} is no part of the export.", "Move it out of the folder.")
    from .report import render_report_from  # needs matplotlib

    if built is not None or LAYOUT.provenance in manifest.files:
        from .sbom import components  # needs cyclonedx-python-lib

        built = built or read_built(folder, manifest)
        stated = statement(manifest, found, read_options(folder), built)
        write_atomic(folder / LAYOUT.provenance, stated)
        facts = read_figures(folder).facts
        write_atomic(folder / LAYOUT.sbom, components(manifest, found, facts, built, sha256(stated).hexdigest()))
    figures = read_figures(folder)
    texts = {LAYOUT.card: render_card_from(figures), LAYOUT.report: render_report_from(figures)}
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return write_manifest(manifest, folder)


def check_card(folder: Path) -> tuple[str, ...]:
    """Refuse a folder whose card or report is not what its JSON files yield.

    The report is compared where it can be drawn, that is, where matplotlib is installed; its digest is checked anyway.

    Returns:
        The names of the documents compared.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: naming the file, and for card and report the first line that differs.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    figures = read_figures(folder)
    compared = _check_provenance(folder, manifest, figures)
    documents: list[tuple[str, str, Callable[[str, str], bool]]] = [
        (LAYOUT.card, render_card_from(figures), str.__eq__)
    ]
    if find_spec("matplotlib") is not None:
        from .report import render_report_from, same_report

        documents.append((LAYOUT.report, render_report_from(figures), same_report))
    for name, yielded, same in documents:
        found = read_inside(folder, name, _LIMIT).decode("utf-8", "replace")
        if not same(found, yielded):
            raise InvalidArtifact(
                f"{folder / name} is not what the JSON files yield: {_difference(found, yielded)}",
                "It was edited, or written by another version; `safetykit card` writes it again.",
            )
    return (*compared, *(name for name, _, _ in documents))


def _check_provenance(folder: Path, manifest: ExportManifest, figures: Figures) -> tuple[str, ...]:
    """Refuse provenance and components that do not follow from manifest and options; the latter where they can be
    made again, that is, where CycloneDX's library is installed."""
    if LAYOUT.provenance not in manifest.files:
        return ()
    built = read_built(folder, manifest)
    stated = statement(manifest, manifest.files, read_options(folder), built)
    if read_inside(folder, LAYOUT.provenance, _LIMIT) != stated:
        raise _not_so(folder / LAYOUT.provenance)
    if find_spec("cyclonedx") is None:
        return (LAYOUT.provenance,)
    from .sbom import components

    made = components(manifest, manifest.files, figures.facts, built, sha256(stated).hexdigest())
    try:
        found = json.loads(read_inside(folder, LAYOUT.sbom, _LIMIT))
    except (ValueError, RecursionError):
        found = None
    if found != json.loads(made):
        raise _not_so(folder / LAYOUT.sbom)
    return LAYOUT.provenance, LAYOUT.sbom


def _not_so(path: Path) -> InvalidArtifact:
    return InvalidArtifact(
        f"{path} does not say what manifest, options and files say.",
        "It was edited, or written by another version; export the model again.",
    )


def _difference(found: str, yielded: str) -> str:
    ours, theirs = found.split("\n"), yielded.split("\n")
    for number, (line, wanted) in enumerate(zip(ours, theirs, strict=False), start=1):
        if line != wanted:
            return f"line {number} is {line[:120]!r}, not {wanted[:120]!r}."
    return f"it has {len(ours)} lines, not {len(theirs)}."
