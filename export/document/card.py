"""The model card and the report of an export folder: written from its JSON files, and checked against them.

``README.md`` and ``report.html`` are pure functions of the folder's JSON files. The manifest names
every file with its digest; so an edited number fails against the digest, and one whose digest was
edited as well fails against what the JSON yields.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from markupsafe import Markup

from ...adapters.artifact.files import read_inside, require_hashes, write_atomic
from ...adapters.errors import InvalidArtifact
from ...adapters.extras import IN_A_CLONE
from ..layouts.registry import get_layout
from ..manifest import LAYOUT, ExportManifest, hash_folder, read_manifest, write_manifest
from .figures import LATENCY, Figures, read_figures
from .front_matter import front_matter
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
        running=running_words(figures.manifest),
    )


def running_words(manifest: ExportManifest) -> Markup | None:
    """What its layout says about running the folder; None for the plain one."""
    template = get_layout(manifest.layout).template
    if template is None:
        return None
    return Markup(markdown_templates().from_string(template.read_text("utf-8")).render(m=manifest))


def write_card(folder: Path) -> ExportManifest:
    """Write card and report from the JSON files that are in the folder, and seal the folder again.

    Documents that the manifest does not name yet, such as a new ``latency.json``, become part of the export.

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
    known = {*manifest.files, *written}
    if stray := sorted(name for name in hash_folder(folder) if name not in known and not name.endswith(".json")):
        raise InvalidArtifact(f"{folder / stray[0]} is no part of the export.", "Move it out of the folder.")
    from .report import render_report_from  # needs matplotlib

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
    read_manifest(folder)
    figures = read_figures(folder)
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
    return tuple(name for name, _, _ in documents)


def _difference(found: str, yielded: str) -> str:
    ours, theirs = found.split("\n"), yielded.split("\n")
    for number, (line, wanted) in enumerate(zip(ours, theirs, strict=False), start=1):
        if line != wanted:
            return f"line {number} is {line[:120]!r}, not {wanted[:120]!r}."
    return f"it has {len(ours)} lines, not {len(theirs)}."
