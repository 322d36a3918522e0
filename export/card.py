"""The model card and the report of an export folder: written from its JSON files, and checked against them.

``README.md`` and ``report.html`` are pure functions of the folder's JSON files. The manifest names
every file with its digest; so an edited number fails against the digest, and one whose digest was
edited as well fails against what the JSON yields.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup
from pydantic import BaseModel

from ..adapters.errors import InvalidArtifact
from ..adapters.files import read_inside, require_hashes, write_atomic
from ..adapters.manifest import canonical_json, dump_sealed
from .comparison import Comparison
from .figures import FACTS, LATENCY, CardFacts, Figures, attachment_name, document_names, read_figures
from .front_matter import front_matter
from .latency import Latency
from .layout import LAYOUT, ExportManifest, hash_folder, read_manifest, write_manifest
from .rendering import markdown_templates
from .report import render_report_from, same_report

if TYPE_CHECKING:
    from ..adapters.adapter import Adapter

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
    return template.render(figures=figures, header=header, leading=_LEADING, layout=LAYOUT, latency_file=LATENCY)


def write_card(
    folder: Path,
    *,
    comparison: Comparison | None = None,
    latency: Latency | None = None,
    facts: CardFacts | None = None,
    adapters: Sequence[Adapter] = (),
) -> ExportManifest:
    """Add figures to an export folder, write card and report from what is then there, and seal it again.

    What is not given stays as it is in the folder. Interrupted between two files, the folder is refused by
    every reader until the same call was made again.

    Args:
        adapters: those baked in, in order; their sweeps and spectra are written.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: a file that is not written here is damaged, or does not belong to an export.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, verify=False)
    new = dict(_documents(comparison, latency, facts, adapters))
    written = {LAYOUT.card, LAYOUT.report, *new}
    # Sealing blesses every byte in the folder, so all that is not made here must be what was sealed before.
    require_hashes(folder, {name: digest for name, digest in manifest.files.items() if name not in written})
    known = {*manifest.files, *written, *document_names(manifest)}
    if stray := sorted(set(hash_folder(folder)) - known):
        raise InvalidArtifact(f"{folder / stray[0]} is no part of the export.", "Move it out of the folder.")
    for name, data in new.items():
        write_atomic(folder / name, data)
    figures = read_figures(folder)
    write_atomic(folder / LAYOUT.card, render_card_from(figures).encode())
    write_atomic(folder / LAYOUT.report, render_report_from(figures).encode())
    return write_manifest(manifest, folder)


def check_card(folder: Path) -> None:
    """Refuse a folder whose card or report is not what its JSON files yield.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: naming the file, and for card and report the first line that differs.
    """
    folder = Path(folder)
    read_manifest(folder)
    figures = read_figures(folder)
    for name, yielded, same in (
        (LAYOUT.card, render_card_from(figures), str.__eq__),
        (LAYOUT.report, render_report_from(figures), same_report),
    ):
        found = read_inside(folder, name, _LIMIT).decode("utf-8", "replace")
        if not same(found, yielded):
            raise InvalidArtifact(
                f"{folder / name} is not what the JSON files yield: {_difference(found, yielded)}",
                "It was edited, or written by another version; `safetykit card` writes it again.",
            )


def _documents(
    comparison: Comparison | None, latency: Latency | None, facts: CardFacts | None, adapters: Sequence[Adapter]
) -> Iterator[tuple[str, bytes]]:
    sealed: dict[str, BaseModel | None] = {LAYOUT.evaluation: comparison, LATENCY: latency, FACTS: facts}
    for name, document in sealed.items():
        if document is not None:
            yield name, dump_sealed(document)
    for at, adapter in enumerate(adapters):
        attached: dict[Any, Any] = dict(adapter.attachments)
        for kind in ("sweep", "spectra"):
            if kind in attached:
                yield attachment_name(kind, at), canonical_json(attached[kind])


def _difference(found: str, yielded: str) -> str:
    ours, theirs = found.split("\n"), yielded.split("\n")
    for number, (line, wanted) in enumerate(zip(ours, theirs, strict=False), start=1):
        if line != wanted:
            return f"line {number} is {line[:120]!r}, not {wanted[:120]!r}."
    return f"it has {len(ours)} lines, not {len(theirs)}."
