"""The plan of a quickstart: what is refused before any work, what cannot be exported, and what the folder holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.artifact.files import write_atomic
from ...adapters.artifact.hub import located
from ...adapters.artifact.manifest import is_sealed, sealed
from ...adapters.errors import InvalidArtifact, UsageError
from ...adapters.method import Method
from ...adapters.registry import get_method, methods
from ...adapters.settings import listed, option_of, spell
from ...toolkit.commands.console import as_typed
from ...toolkit.commands.fit_plan import require_fit
from ...toolkit.commands.inspect import describe
from ...toolkit.data.records import load_records, require_pictures
from ...toolkit.data.sources import PREFIX, data_path, is_address, is_export, model_path
from ...toolkit.model.asking import require_answerable
from ...toolkit.model.inputs import InputProcessor
from ...toolkit.model.peft_folder import checkpoint_path
from ...toolkit.model.shape import decoder_shape
from ..pipeline.options import ExportOptions
from ..pipeline.plan import plan_export
from ..pipeline.requirements import require_weights
from ..pipeline.source import Source
from .loop import EXPORT
from .quickstart_options import QuickstartOptions

STATE, RECORDS = "quickstart.json", "records"
_SHOWN = 16  # digits of a digest


@dataclass(frozen=True)
class Plan:
    """A quickstart that nothing forbids that is known before it.

    Attributes:
        folder: where everything is put, step by step.
        methods: that are fitted.
        data: records, ``folder/records`` where ``starter`` ones are made.
        obstacle: why the model cannot be exported; empty if it can.
        fingerprint: of the model.
        organism: it is a reference VLM.
    """

    model: str
    folder: Path
    options: QuickstartOptions
    methods: tuple[Method, ...]
    data: str
    starter: bool
    obstacle: str
    fingerprint: str
    organism: bool

    def adapter(self, method: Method) -> Path:
        """Where a method's adapter lies."""
        return self.folder / f"adapter-{method.name}"


def plan_quickstart(model: str, folder: Path, options: QuickstartOptions) -> Plan:
    """Check everything that can be known before work starts; writes nothing but the note of what is begun.

    Raises:
        UsageError: it cannot be done, or the folder holds something else.
    """
    _require_ours(folder)
    if is_address(model) or is_export(located(model)):
        what = "the address of a server" if is_address(model) else "an export"
        raise UsageError(f"{model} is {what}, and a quickstart begins with a checkpoint.", "Name its folder.")
    model_path(model)
    chosen = _methods(options)
    organism = model.startswith(f"{PREFIX}:")
    starter = options.data is None and not organism
    options.require_use(("records",), starter, "starter records")
    data = options.data or (str(folder / RECORDS) if starter else PREFIX)
    seen = describe(model, fingerprint=True)
    obstacle = _obstacle(model, folder, options, seen["export"])
    plan = Plan(model, folder, options, chosen, data, starter, obstacle, seen["fingerprint"], organism)
    identity = _identity(plan, "" if starter else require_records(plan))
    _require_same(folder, identity)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / STATE, sealed(identity))
    return plan


def require_records(plan: Plan) -> str:
    """Refuse records that a step cannot use.

    Returns:
        SHA-256 of their words; pictures are not read.

    Raises:
        UsageError: a split or what a method learns from is missing; the model does not take one.
        InvalidArtifact: a row is no record.
    """
    found = load_records(data_path(plan.data), ("fit", "calibration", "test"))
    require_pictures(found)
    require_answerable(plan.model, found)
    used = [record for record in found if record.split != "test"]
    for method in plan.methods:
        require_fit(method, usual(method), decoder_shape(model_path(plan.model)), used, sweep=method.sweep is not None)
    missing = {"harmful", "harmless"} - {record.label for record in found if record.split == "test"}
    if missing:
        raise UsageError(
            f"{plan.data} has no {listed(sorted(missing))} record of split test, so nothing could be shown.",
            "`safetykit data split` gives every split its share.",
        )
    digest = hashlib.sha256()
    for record in found:
        digest.update(record.model_dump_json().encode())
    return digest.hexdigest()


def usual(method: Method) -> dict[str, Any]:
    """Settings that a quickstart does not choose: of methods with variants, the usual one."""
    field = method.settings.model_fields.get("variant")
    return {"variant": field.default} if method.sweep is not None and field is not None else {}


def _methods(options: QuickstartOptions) -> tuple[Method, ...]:
    """The methods by their names, each once.

    Raises:
        UsageError: there is none of that name, or it is not fitted on labelled records alone.
    """
    chosen = tuple(get_method(name) for name in dict.fromkeys(options.method))
    for method in chosen:
        if method.data != "records" or method.needs:
            fit = [one.name for one in methods().values() if one.data == "records" and not one.needs]
            raise UsageError(
                f"{spell(QuickstartOptions, 'method')} cannot be {method.name}: it learns from captioned pictures.",
                f"Choose of {listed(fit)}, or fit it by hand: safetykit fit {method.name}.",
            )
    return chosen


def _obstacle(model: str, folder: Path, options: QuickstartOptions, found: Mapping[str, Any]) -> str:
    """Why the model cannot be exported; empty if it can.

    Args:
        found: what `inspect` says of its export.

    Raises:
        UsageError: it could be exported and not in this way.
    """
    if not found["supported"]:
        return str(found["reason"])
    checkpoint = checkpoint_path(model)
    source = Source(checkpoint, model, InputProcessor.from_pretrained(checkpoint))
    # Without records, which there may be none of yet, so without what acts on them.
    chosen = ExportOptions(**{name: value for name, value in options.loading().items() if name != "batch_size"})
    try:
        require_weights(source, chosen)
    except UsageError as error:
        return error.message
    if not (folder / EXPORT).exists():
        plan_export(source, folder / EXPORT, chosen, named=True)
    return ""


def _identity(plan: Plan, words: str) -> dict[str, Any]:
    """What the folder's parts are made of, by the words in which a user is told of it.

    Args:
        words: of the records, their digest.
    """
    options = plan.options
    chosen = {option_of(QuickstartOptions, name): getattr(options, name) for name in type(options).model_fields}
    return {
        "schema_version": 1,
        "model": as_typed(plan.model, as_words=True),
        **{name: list(value) if isinstance(value, tuple) else value for name, value in chosen.items()},
        "weights": plan.fingerprint[:_SHOWN],
        "records": words[:_SHOWN],
    }


def _require_ours(folder: Path) -> None:
    """Refuse a folder that holds something and was not begun by a quickstart."""
    if folder.is_file():
        raise UsageError(f"{folder} is a file, not a folder.", "Choose another output folder.")
    if folder.is_dir() and any(folder.iterdir()) and _state(folder) is None:
        raise UsageError(
            f"{folder} already exists and was not begun by safetykit quickstart.", "Choose another output folder."
        )


def _require_same(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse to go on in a folder that was begun with something else."""
    if (before := _state(folder)) is None:
        return
    for name, value in identity.items():
        if (other := before.get(name)) != value:
            raise UsageError(
                f"{folder} was begun with {_said(name, other)}, not with {_said(name, value)}.",
                "Type the same command to go on, or choose another folder.",
            )


def _said(name: str, value: Any) -> str:
    words: Sequence[Any] = value if isinstance(value, list) else [value]
    given = " ".join(map(str, words)) if value not in (None, [], "") else ""
    return f"{name} {given}" if given else f"no {name}"


def _state(folder: Path) -> dict[str, Any] | None:
    """What a quickstart noted in a folder; None if none was begun there.

    Raises:
        InvalidArtifact: the note was edited.
    """
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        data = path.read_bytes()
        body = json.loads(data)
    except ValueError:
        body = None
    if not isinstance(body, dict) or not is_sealed(data, body):
        raise InvalidArtifact(f"{path} was edited.", "Choose another output folder.")
    return body
