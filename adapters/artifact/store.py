"""An adapter on disk: ``adapter.safetensors``, ``manifest.json``, ``README.md`` and JSON attachments.

Loading runs no code and unpickles nothing: the manifest is read and checked, every file is compared
with its digest, and only then are tensors built.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from ..errors import InvalidArtifact, SafetykitError, UsageError, WrongBase
from ..ops.branch import Branch
from ..registry import find_method
from .adapter import Adapter, Intervention
from .files import MANIFEST, atomic_folder, read_inside, sha256_file
from .manifest import (
    AdapterManifest,
    BranchSpec,
    InterventionSpec,
    TensorSpec,
    UpdateSpec,
    canonical_json,
    dump_sealed,
    load_sealed,
)
from .sites import Site
from .updates import WeightUpdate

TENSORS, CARD = "adapter.safetensors", "README.md"
_MANIFEST_LIMIT = 16 * 2**20


def save_adapter(adapter: Adapter, folder: Path, *, overwrite: bool = False) -> Path:
    """Write ``adapter`` into ``folder``; the folder appears complete or not at all.

    The bytes depend on the adapter alone, so the same fit gives the same files.

    Raises:
        UsageError: ``folder`` exists and ``overwrite`` is off.
    """
    with atomic_folder(folder, overwrite=overwrite) as work:
        for name, data in _files(adapter).items():
            (work / name).write_bytes(data)
    return folder


def manifest_digest(adapter: Adapter) -> str:
    """SHA-256 of an adapter's manifest file, which holds the digest of every other file: its identity."""
    return adapter.read_as or hashlib.sha256(_files(adapter)[MANIFEST]).hexdigest()


def _files(adapter: Adapter) -> dict[str, bytes]:
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
    contents = {
        TENSORS: safetensors.torch.save(tensors),
        CARD: adapter_card(adapter).encode(),
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
    """The manifest of an adapter folder, without reading its tensors.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: the manifest is missing, damaged or was changed.
    """
    if not folder.is_dir():
        raise UsageError(f"There is no adapter folder at {folder}.", "Make one with `safetykit fit`.")
    path = folder / MANIFEST
    return load_sealed(AdapterManifest, read_inside(folder, MANIFEST, _MANIFEST_LIMIT), str(path))


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter folder.

    Raises:
        UsageError: there is no such folder.
        InvalidArtifact: a file is missing, linked, truncated or changed (the file is named).
    """
    manifest = read_manifest(folder)
    _require_settings(manifest, folder)
    if TENSORS not in manifest.files:
        raise InvalidArtifact(f"{folder / MANIFEST} names no {TENSORS}.", "Get the adapter again from its source.")
    contents = {}
    for name, digest in sorted(manifest.files.items()):
        contents[name] = read_inside(folder, name)
        if hashlib.sha256(contents[name]).hexdigest() != digest:
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
        name.removesuffix(".json"): json.loads(data) for name, data in contents.items() if name.endswith(".json")
    }

    def named(specs: Mapping[str, TensorSpec]) -> dict[str, torch.Tensor]:
        return {param: _tensor(spec, tensors, folder) for param, spec in specs.items()}

    try:
        adapter = Adapter(
            manifest.info,
            tuple(
                Intervention(spec.op, Site.parse(spec.site), spec.scope, spec.phase, named(spec.tensors), spec.gate)
                for spec in manifest.interventions
            ),
            attachments,
            _branch(manifest.branch, named(manifest.branch.tensors)) if manifest.branch else None,
            manifest.detector,
            tuple(WeightUpdate(spec.parameter, named(spec.tensors)) for spec in manifest.updates),
        )
    except InvalidArtifact:
        raise
    except SafetykitError as error:
        raise InvalidArtifact(f"{folder / MANIFEST}: {error.message}", error.next_step) from None
    object.__setattr__(adapter, "read_as", sha256_file(folder / MANIFEST))
    return adapter


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


def require_base(adapter: Adapter, fingerprint: str, name: str) -> None:
    """Refuse an adapter that was fitted on another model.

    Args:
        fingerprint: of the model it is asked to change.
        name: how to call that model in the error.

    Raises:
        WrongBase: the fingerprints differ.
    """
    if adapter.info.base.fingerprint != fingerprint:
        raise WrongBase(
            f"The adapter ({adapter.info.method}) was fitted on model {adapter.info.base.fingerprint[:12]}, "
            f"but {name} is {fingerprint[:12]}.",
            "Fit it on this model, or pass --allow-wrong-base; the card then shows that you did.",
        )


def adapter_card(adapter: Adapter) -> str:
    """The adapter folder's README: what it is, for which base, from which data."""
    info = adapter.info
    rows = "\n".join(
        f"| {index} | `{item.site}` | `{item.op}` | {item.scope} | {item.phase}"
        f"{', gate held' if item.gate == 'held' else ''} | "
        + ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(item.tensors.items()))
        + " |"
        for index, item in enumerate(adapter.interventions)
    )
    more = ""
    if branch := adapter.branch:
        more += (
            f"\n## Branch\n\n`{branch.op}`: blocks after `{branch.safety}` run again, "
            f"from the states there and at `{branch.fused}`.\n"
        )
    if detector := adapter.detector:
        more += f"\n## Detector\n\nRefuses when the risk (log-odds) exceeds {detector.threshold:.6g}.\n"
    if adapter.updates:
        lines = "\n".join(
            f"| `{update.parameter}` | "
            + ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(update.tensors.items()))
            + " |"
            for update in adapter.updates
        )
        more += f"\n## Weights that change\n\n| weight | tensors |\n|---|---|\n{lines}\n"
    hyper = "\n".join(f"| {name} | {json.dumps(value)} |" for name, value in sorted(info.hyperparameters.items()))
    counts = "\n".join(f"| {name} | {count} |" for name, count in sorted(info.data.counts.items()))
    return (
        f"# {info.method} ({info.variant}) safety adapter\n\n"
        f"For the base model `{info.base.fingerprint}` ({info.base.architecture}, {info.base.n_layers} layers, "
        f"width {info.base.d_model}). Loading it on another model is refused.\n\n"
        f"Sign convention: {info.sign_convention}\n\n"
        f"## Interventions\n\n| # | site | op | scope | phase | tensors |\n|---|---|---|---|---|---|\n{rows}\n{more}\n"
        f"## Hyperparameters\n\n| name | value |\n|---|---|\n{hyper}\n\n"
        f"## Fitted on\n\nRecords with SHA-256 `{info.data.sha256}`.\n\n| records | count |\n|---|---|\n{counts}\n"
    )
