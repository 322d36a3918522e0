"""An adapter on disk: ``adapter.safetensors``, ``manifest.json``, ``README.md`` and JSON attachments.

Loading runs no code and unpickles nothing: the manifest is read and checked, every file is compared
with its digest, and only then are tensors built.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch
import torch
from pydantic import JsonValue

from ..errors import InvalidArtifact, SafetykitError, UsageError
from ..ops.branch import Branch
from ..registry import find_method
from .files import MANIFEST, read_inside, require_named, sha256_file
from .hub import located, plain_file
from .intervention import Intervention
from .manifest import (
    AdapterInfo,
    AdapterManifest,
    BranchSpec,
    DetectorInfo,
    InterventionSpec,
    TensorSpec,
    UpdateSpec,
    canonical_json,
    dump_sealed,
    load_sealed,
)
from .output import atomic_folder
from .readme import adapter_card
from .signature import require_accepted
from .sites import Site
from .updates import WeightUpdate

TENSORS, CARD = "adapter.safetensors", "README.md"
_MANIFEST_LIMIT, _ATTACHMENT_LIMIT = 16 * 2**20, 64 * 2**20
_WIDEST = 8  # bytes of a number in a tensor
_JSON = ".json"


class Storable(Protocol):
    """What a folder holds of an adapter."""

    @property
    def info(self) -> AdapterInfo: ...
    @property
    def interventions(self) -> tuple[Intervention, ...]: ...
    @property
    def attachments(self) -> Mapping[str, JsonValue]: ...
    @property
    def branch(self) -> Branch | None: ...
    @property
    def detector(self) -> DetectorInfo | None: ...
    @property
    def updates(self) -> tuple[WeightUpdate, ...]: ...


@dataclass(frozen=True)
class Stored:
    """What was read from a folder.

    Attributes:
        digest: SHA-256 of the manifest file.
    """

    info: AdapterInfo
    interventions: tuple[Intervention, ...]
    attachments: Mapping[str, JsonValue]
    branch: Branch | None
    detector: DetectorInfo | None
    updates: tuple[WeightUpdate, ...]
    digest: str


def write_folder(adapter: Storable, folder: Path, *, overwrite: bool = False) -> Path:
    """Write the files of an adapter; the folder appears complete or not at all.

    Raises:
        UsageError: ``folder`` exists and ``overwrite`` is off.
    """
    with atomic_folder(folder, overwrite=overwrite) as work:
        for name, data in files_of(adapter).items():
            (work / name).write_bytes(data)
    return folder


def files_of(adapter: Storable) -> dict[str, bytes]:
    """The files of an adapter folder, by name."""
    tensors: dict[str, torch.Tensor] = {}

    def keep(owner: str, named: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
        specs = {}
        for param, tensor in sorted(named.items()):
            name = f"{owner}.{param}"
            tensors[name] = tensor.detach().cpu().contiguous()
            specs[param] = TensorSpec(
                name=name, shape=tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch.")
            )
        return specs

    interventions = tuple(
        InterventionSpec(
            op=item.op,
            site=str(item.site),
            scope=item.scope,
            phase=item.phase,
            gate=item.gate,
            reads=tuple(map(str, item.reads)),
            tensors=keep(str(index), item.tensors),
        )
        for index, item in enumerate(adapter.interventions)
    )
    branch = adapter.branch and BranchSpec(
        op=adapter.branch.op,
        safety=str(adapter.branch.safety),
        fused=str(adapter.branch.fused),
        tensors=keep("branch", adapter.branch.tensors),
    )
    updates = tuple(
        UpdateSpec(parameter=update.parameter, tensors=keep(f"update.{index}", update.tensors))
        for index, update in enumerate(adapter.updates)
    )
    card = adapter_card(adapter.info, adapter.interventions, adapter.branch, adapter.detector, adapter.updates)
    contents = {
        TENSORS: safetensors.torch.save(tensors),
        CARD: card.encode(),
        **{f"{name}.json": canonical_json(value) for name, value in adapter.attachments.items()},
    }
    manifest = AdapterManifest(
        info=adapter.info,
        interventions=interventions,
        branch=branch,
        detector=adapter.detector,
        updates=updates,
        files={name: hashlib.sha256(data).hexdigest() for name, data in sorted(contents.items())},
    )
    return {**contents, MANIFEST: dump_sealed(manifest)}


def read_manifest(folder: Path) -> AdapterManifest:
    """The manifest of an adapter folder, or of an id in the local cache, without reading its tensors.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: the manifest is missing, damaged or was changed.
        SignatureFailed: the policy in force refuses the folder.
    """
    return _read_manifest(located(folder))[0]


def _read_manifest(folder: Path) -> tuple[AdapterManifest, str | None]:
    """And the identity that signed it, where a policy asks for one."""
    if not folder.is_dir():
        raise UsageError(f"There is no adapter folder at {folder}.", "Make one with `safetykit fit`.")
    data = read_inside(folder, MANIFEST, _MANIFEST_LIMIT)
    signed_by = require_accepted(folder, MANIFEST, data)
    return load_sealed(AdapterManifest, data, str(folder / MANIFEST)), signed_by


def read_folder(folder: Path) -> Stored:
    """Read the files of an adapter; whether they make one is for the adapter to say.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: a file is missing, linked, truncated or changed (the file is named).
        SignatureFailed: the policy in force refuses the folder.
    """
    folder = located(folder)
    manifest, signed_by = _read_manifest(folder)
    if signed_by is not None:
        require_named(folder, {MANIFEST, *manifest.files})
    _require_settings(manifest, folder)
    if TENSORS not in manifest.files:
        raise InvalidArtifact(f"{folder / MANIFEST} names no {TENSORS}.", "Get the adapter again from its source.")
    contents = {}
    for name, digest in sorted(manifest.files.items()):
        if name == TENSORS or name.endswith(_JSON):  # what is read is what is hashed; nothing else is held
            contents[name] = read_inside(folder, name, _most(manifest) if name == TENSORS else _ATTACHMENT_LIMIT)
            found = hashlib.sha256(contents[name]).hexdigest()
        else:
            found = sha256_file(plain_file(folder, name))
        if found != digest:
            raise InvalidArtifact(
                f"{folder / name} was changed or truncated.", "Get the adapter again from its source."
            )
    try:
        tensors = safetensors.torch.load(contents[TENSORS])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise InvalidArtifact(
            f"{folder / TENSORS} is not a safetensors file: {error}.", "Fit the adapter again."
        ) from None
    attachments = {
        name.removesuffix(_JSON): _parsed(data, folder / name)
        for name, data in contents.items()
        if name.endswith(_JSON)
    }

    def named(specs: Mapping[str, TensorSpec]) -> dict[str, torch.Tensor]:
        return {param: _tensor(spec, tensors, folder) for param, spec in specs.items()}

    try:
        return Stored(
            info=manifest.info,
            interventions=tuple(
                Intervention(
                    spec.op,
                    Site.parse(spec.site),
                    spec.scope,
                    spec.phase,
                    named(spec.tensors),
                    spec.gate,
                    tuple(map(Site.parse, spec.reads)),
                )
                for spec in manifest.interventions
            ),
            attachments=attachments,
            branch=_branch(manifest.branch, named(manifest.branch.tensors)) if manifest.branch else None,
            detector=manifest.detector,
            updates=tuple(WeightUpdate(spec.parameter, named(spec.tensors)) for spec in manifest.updates),
            digest=sha256_file(folder / MANIFEST),
        )
    except InvalidArtifact:
        raise
    except SafetykitError as error:
        raise InvalidArtifact(f"{folder / MANIFEST}: {error.message}", error.next_step) from None


def _most(manifest: AdapterManifest) -> int:
    """Bytes that the tensors which a manifest names can take at most, their header included."""
    owners = [one.tensors for one in manifest.interventions] + [one.tensors for one in manifest.updates]
    owners += [manifest.branch.tensors] if manifest.branch else []
    specs = [spec for tensors in owners for spec in tensors.values()]
    return _MANIFEST_LIMIT + sum(_WIDEST * math.prod(spec.shape) for spec in specs)


def _parsed(data: bytes, path: Path) -> JsonValue:
    try:
        value: JsonValue = json.loads(data)
        canonical_json(value)  # what an adapter holds can be written again
    except (ValueError, RecursionError) as error:
        raise InvalidArtifact(
            f"{path} is not JSON ({type(error).__name__}).", "Get the adapter again from its source."
        ) from None
    return value


def _require_settings(manifest: AdapterManifest, folder: Path) -> None:
    """Refuse recorded settings that the method cannot have; an unknown method's are its own affair."""
    method = find_method(manifest.info.method)
    if method is None:
        return
    try:
        method.settings.recorded(manifest.info.hyperparameters)
    except UsageError as error:
        raise InvalidArtifact(
            f"{folder / MANIFEST} records settings of {method.title} that cannot be: {error.message}", error.next_step
        ) from None


def _branch(spec: BranchSpec, tensors: dict[str, torch.Tensor]) -> Branch:
    return Branch(spec.op, Site.parse(spec.safety), Site.parse(spec.fused), tensors)


def _tensor(wanted: TensorSpec, tensors: Mapping[str, torch.Tensor], folder: Path) -> torch.Tensor:
    tensor = tensors.get(wanted.name)
    if tensor is None or tuple(tensor.shape) != wanted.shape or f"torch.{wanted.dtype}" != str(tensor.dtype):
        found = "is missing" if tensor is None else f"is {tensor.dtype} {tuple(tensor.shape)}"
        raise InvalidArtifact(
            f"Tensor {wanted.name} in {folder / TENSORS} {found}, not {wanted.dtype} {wanted.shape}.",
            "Get the adapter again from its source.",
        )
    return tensor
