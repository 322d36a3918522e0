"""Everything an export folder states about itself, read from its JSON files and from nothing else."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ...adapters.artifact.files import read_inside, sha256_file
from ...adapters.errors import InvalidArtifact
from ..layouts.interface import Interface
from ..manifest import LAYOUT, ExportManifest, attachment_name, read_manifest
from ..parity.comparison import Comparison
from ..parity.report import Check, ParityReport
from .facts import CardFacts
from .latency import Latency
from .notices import Notice, notices
from .sections import sections

FACTS, LATENCY, CONFIG = "card.json", "latency.json", "config.json"
ORGANISM_KEY = "safetykit_model_organism"  # in config.json of a model that was trained to have the disease
_LIMIT = 256 * 2**20


@dataclass(frozen=True)
class ParityKind:
    """All parity checks of one kind.

    Attributes:
        nearest: the check whose error comes nearest to its limit, or exceeds it most.
    """

    name: str
    checks: tuple[Check, ...]
    nearest: Check

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Figures:
    """An export folder's JSON files; None for those that are not there.

    Attributes:
        attached: by position of the adapter, what came with it, by name and in the order of the sections.
        provenance: whether the folder says from what it was built.
        organism: the base says of itself that it is a model organism.
        hashes: SHA-256 of every JSON file read, but the manifest, which names the card in turn.
    """

    manifest: ExportManifest
    facts: CardFacts | None
    comparison: Comparison | None
    parity: ParityReport | None
    latency: Latency | None
    interface: Interface | None
    attached: dict[int, dict[str, Any]]
    provenance: bool
    organism: bool
    hashes: dict[str, str]

    @property
    def methods(self) -> str:
        """The adapters' methods and variants, for people."""
        return " + ".join(f"{item.method} ({item.variant})" for item in self.manifest.adapters) or "no adapter"

    @property
    def base_name(self) -> str:
        """The base, for people: as stated, else as it was called in the evaluation, else its architecture."""
        if self.facts:
            return self.facts.base_model
        return self.comparison.before.model if self.comparison else self.manifest.base.architecture

    @property
    def unseen_carriers(self) -> tuple[str, ...]:
        """Carriers evaluated but in the data of no adapter's fit."""
        if self.comparison is None:
            return ()
        seen = {key.split("/")[1] for item in self.manifest.adapters for key in item.data.counts if "/" in key}
        return tuple(carrier for carrier in self.comparison.carriers() if carrier not in seen)

    @property
    def gate_names(self) -> dict[str, str]:
        """What decisions call a gate's score → its site and op."""
        return {f"{item.index}.score": f"{item.site} ({item.op})" for item in self.manifest.interventions}

    @property
    def decisions_compared(self) -> int | None:
        """Over how many records the decisions of PyTorch and of the export were compared; None if over none."""
        checks = self.parity.checks if self.parity else ()
        return next((check.count for check in checks if check.kind == "decisions"), None)

    @property
    def notices(self) -> tuple[Notice, ...]:
        """What a reader must not miss."""
        return notices(self)

    def parity_kinds(self) -> tuple[ParityKind, ...]:
        """The parity checks by kind, in the order of the report."""
        kinds: dict[str, list[Check]] = {}
        for check in self.parity.checks if self.parity else ():
            kinds.setdefault(check.kind, []).append(check)
        return tuple(ParityKind(name, tuple(checks), max(checks, key=_nearness)) for name, checks in kinds.items())


def document_names(manifest: ExportManifest) -> tuple[str, ...]:
    """The JSON files that a card is made from, beside the manifest."""
    attached = [attachment_name(kind, at) for at in range(len(manifest.adapters)) for kind in sections()]
    return (FACTS, LAYOUT.evaluation, LAYOUT.parity, LATENCY, LAYOUT.interface, LAYOUT.provenance, *attached, CONFIG)


def read_figures(folder: Path) -> Figures:
    """Read and check the JSON files of an export folder.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: a file is damaged, or is not what it should be; named.
    """
    manifest = read_manifest(folder, verify=False)
    present = [name for name in document_names(manifest) if (folder / name).exists()]

    attached = {
        at: {
            name: _plain(folder, attachment_name(name, at), section.model)
            for name, section in sections().items()
            if attachment_name(name, at) in present
        }
        for at in range(len(manifest.adapters))
    }
    parity = _plain(folder, LAYOUT.parity, ParityReport)
    comparison = _plain(folder, LAYOUT.evaluation, Comparison)
    if parity is not None and (wrong := parity.inconsistency() or _other_decisions(parity, comparison)):
        raise InvalidArtifact(f"{folder / LAYOUT.parity} was edited: {wrong}.", "Export the model again.")
    return Figures(
        manifest=manifest,
        facts=_plain(folder, FACTS, CardFacts),
        comparison=comparison,
        parity=parity,
        latency=_plain(folder, LATENCY, Latency),
        interface=_plain(folder, LAYOUT.interface, Interface),
        attached=attached,
        provenance=LAYOUT.provenance in present,
        organism=(_plain(folder, CONFIG, dict[str, Any]) or {}).get(ORGANISM_KEY) is True,
        hashes={name: sha256_file(folder / name) for name in present},
    )


def _plain(folder: Path, name: str, kind: Any) -> Any:
    """A JSON file as ``kind``; None where it is missing."""
    if not (folder / name).exists():
        return None
    try:
        return TypeAdapter(kind).validate_python(json.loads(read_inside(folder, name, _LIMIT)))
    except (ValueError, RecursionError) as error:
        detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is not JSON"
        raise InvalidArtifact(f"{folder / name} is not valid: {detail}.", "Export the model again.") from None


def _nearness(check: Check) -> float:
    if check.limit == 0:
        return 0.0 if check.error == 0 else math.inf
    return check.error / check.limit


def _other_decisions(parity: ParityReport, comparison: Comparison | None) -> str | None:
    """What the list of flips says otherwise than the export's decisions, if anything."""
    if comparison is None:
        return None
    after = {item.id: item.outcome for item in comparison.after.decisions}
    for flip in parity.flips:
        if flip.id not in after or (flip.what == "outcome" and after[flip.id] != flip.onnx):
            return f"the flip of {flip.id} is not what the export decided"
    counted = next((check.count for check in parity.checks if check.kind == "decisions"), len(after))
    return None if counted == len(after) else f"{counted} decisions were compared, and {len(after)} made"
