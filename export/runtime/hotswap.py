"""Hot-swap: parameters as initializers that a caller may override, with the fitted values as defaults.

A graph's parameter is an initializer *and* an input. Left alone it has the value it was exported with, so a caller who
forgets the adapter still has one. Overridden it is fed on every run, as an ordinary input or, where a runtime has no
other way, by an ``.onnx_adapter`` file (``onnxruntime.LoraAdapter`` and ``RunOptions.add_active_adapter``; GenAI's
``Adapters``). ONNX Runtime's runs with bound inputs and outputs ignore such adapters with a warning only, so
:class:`~safetykit.export.runtime.onnx_vlm.OnnxVLM` feeds inputs. GenAI 0.18.0 ignores them in its pipeline for pictures
without a word: there the defaults stay in force, and another adapter needs an export of its own.

Two adapters can be swapped when they are the same ops at the same sites, scopes, phases and gates, update the same
weights in the same way, and were fitted on the same base; ranks may differ. Everything else is refused: a missing,
unknown or misshaped parameter, and an adapter of another base. An ``.onnx_adapter`` file has no room for words; its
model version holds 31 bits of the base's fingerprint, its adapter version 31 bits of the signature's hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...adapters.artifact.hub import located
from ...adapters.artifact.manifest import DetectorInfo
from ...adapters.artifact.policy import in_force
from ...adapters.errors import InvalidArtifact, SignatureFailed, UsageError, WrongBase
from ..base.fitted_on import require_graph_weights
from ..manifest import GRAPHS, LAYOUT, ExportManifest, read_manifest
from ..surgery.adapter_file import base_version, described, signature, signature_version

if TYPE_CHECKING:
    from ...adapters.artifact.adapter import Adapter

Arrays = Mapping[str, np.ndarray]
SUFFIX = ".onnx_adapter"
_ADVICE = "Export it with its own graphs, or fit one with the same options."


@dataclass(frozen=True)
class Swap:
    """What an export is to run with.

    Attributes:
        arrays: every parameter by its name in the graphs, in the graphs' types.
        detector: when requests are refused; None without a detector.
    """

    arrays: Arrays
    detector: DetectorInfo | None

    def digest(self) -> str:
        """SHA-256 of everything."""
        found = hashlib.sha256(repr(self.detector).encode())
        for name, array in sorted(self.arrays.items()):
            found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return found.hexdigest()


def read_adapter_file(path: Path, manifest: ExportManifest) -> dict[str, np.ndarray]:
    """The parameters in an ``.onnx_adapter`` file made for exports like that of ``manifest``.

    Raises:
        UsageError: there is no such file, or it is for other ops or sites.
        InvalidArtifact: it is no adapter file.
        WrongBase: it was made for another base.
    """
    import onnxruntime

    if not path.is_file():
        raise UsageError(f"There is no adapter file {path}.", "Export one with --mode hot-swap.")
    try:
        found = onnxruntime.AdapterFormat.read_adapter(str(path))
        arrays = {name: np.array(value.numpy()) for name, value in found.get_parameters().items()}
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise InvalidArtifact(f"{path} is no ONNX Runtime adapter: {error}", "Export it again.") from None
    if found.get_model_version() != base_version(manifest):
        raise WrongBase(
            f"{path} was made for another base model than {manifest.base.fingerprint[:12]}.",
            "Take the file that was exported for this base.",
        )
    if found.get_adapter_version() != signature_version(manifest):
        raise UsageError(f"{path} is for other ops or sites than this export.", _ADVICE)
    return arrays


def require_swappable(manifest: ExportManifest) -> None:
    """Refuse an export whose parameters cannot be swapped.

    Raises:
        UsageError: it was exported in another mode.
    """
    if manifest.mode != "hot-swap":
        raise UsageError(
            f"The export's mode is {manifest.mode}: its parameters are fixed.", "Export it with --mode hot-swap."
        )


def read_swap(
    sources: Sequence[Path | str | Adapter], manifest: ExportManifest, *, allow_uncorrected_detector: bool = False
) -> Swap:
    """The swap that ``sources`` describe, checked as a whole against an export.

    Args:
        sources: as many adapters (or adapter folders) as the export has, in its order; or one hot-swap export of the
            same base; or the ``.onnx_adapter`` files of all graphs that have parameters.
        allow_uncorrected_detector: accept a detector that was not fitted under the correctors beside it.

    Raises:
        UsageError: the export has no swappable parameters, the adapters are not its ops at its sites, or a detector
            was not fitted under the correctors beside it.
        InvalidArtifact: a parameter is missing, unknown, misshaped or overflows, or a file is damaged.
        WrongBase: an adapter was fitted on another base, or on other rounded weights.
        SignatureFailed: the policy in force refuses one.
    """
    require_swappable(manifest)
    if not sources:
        raise UsageError("There is no adapter to swap in.", "Give one, or call reset for the export's own.")
    paths = [located(source) for source in sources if isinstance(source, (str, Path))]
    if len(paths) == len(sources) and all(path.suffix == SUFFIX for path in paths):
        if in_force() is not None:
            raise SignatureFailed(
                f"{paths[0].name} carries no signature, and the policy asks for one.",
                "Give the signed folder of the adapter, or the export it lies in.",
            )
        if manifest.detector is not None:
            raise UsageError(
                f"{paths[0].name} does not say when to refuse: such files hold numbers only.",
                "Give the adapter's folder, or the export it lies in.",
            )
        arrays: dict[str, np.ndarray] = {}
        for path in paths:
            arrays |= read_adapter_file(path, manifest)
        return Swap(checked(arrays, manifest, ", ".join(str(path) for path in paths)), None)
    if len(paths) == len(sources) == 1 and (paths[0] / LAYOUT.manifest).is_file():
        return _of_export(paths[0], manifest, allow_uncorrected_detector)
    from ...adapters.artifact.adapter import Adapter
    from ...adapters.artifact.stack import require_fitted_stack

    adapters = [source if isinstance(source, Adapter) else Adapter.load(source) for source in sources]
    names = [one.info.method if isinstance(one, Adapter) else one for one in sources]
    require_fitted_stack(adapters, names, allow=allow_uncorrected_detector)
    return swap_of(adapters, manifest)


def _of_export(folder: Path, manifest: ExportManifest, allow_uncorrected_detector: bool) -> Swap:
    other = read_manifest(folder)
    if other.uncorrected_detector_allowed and not allow_uncorrected_detector:
        raise UsageError(
            f"The detector of {folder} was not fitted under the correctors beside it: it may refuse harmless requests "
            "or let harmful ones pass.",
            "Take an export of a stack that was fitted together, or pass --allow-uncorrected-detector.",
        )
    if other.base.fingerprint != manifest.base.fingerprint:
        raise WrongBase(
            f"{folder} was exported from model {other.base.fingerprint[:12]}, not {manifest.base.fingerprint[:12]}.",
            "Take an export of the same base.",
        )
    require_graph_weights(other.adapters, manifest, "the export that is to run with it")
    if other.mode != "hot-swap":
        raise UsageError(f"The mode of {folder} is {other.mode}.", "Export it with --mode hot-swap.")
    if difference := _difference(signature(manifest), signature(other)):
        raise UsageError(f"{folder} cannot take the export's place: {difference}.", _ADVICE)
    return swap_in(folder, other, manifest)


def swap_in(folder: Path, its: ExportManifest, manifest: ExportManifest) -> Swap:
    """The adapters of the export in ``folder`` for one with ``manifest``, which may be the same.

    Args:
        its: the manifest of ``folder``.

    Raises:
        SafetykitError: as of :func:`read_adapter_file` and :func:`checked`.
    """
    arrays: dict[str, np.ndarray] = {}
    for graph in sorted({one.graph for one in its.parameters}):
        path = (folder / its.graph_file(graph)).parent / LAYOUT.adapter_file(graph)
        arrays |= read_adapter_file(path, manifest)
    return Swap(checked(arrays, manifest, str(folder)), its.detector)


def swap_of(adapters: Sequence[Adapter], manifest: ExportManifest) -> Swap:
    """The swap that adapters describe; see :func:`read_swap`."""
    from ...adapters.artifact.adapter import the_branch, the_detector
    from ..surgery.lowrank import low_rank_terms

    for adapter in adapters:
        if adapter.info.base.fingerprint != manifest.base.fingerprint:
            raise WrongBase(
                f"The adapter ({adapter.info.method}) was fitted on model {adapter.info.base.fingerprint[:12]}, the "
                f"export is of {manifest.base.fingerprint[:12]}.",
                "Fit it on this model.",
            )
    require_graph_weights([adapter.info for adapter in adapters], manifest, "the export")
    items = [item for adapter in adapters for item in adapter.interventions]
    updates = [update for adapter in adapters for update in adapter.updates]
    branch, detector = the_branch(adapters), the_detector(adapters)
    tensors: dict[str, np.ndarray] = {}
    for index, item in enumerate(items):
        tensors |= {f"{index}.{name}": tensor.numpy(force=True) for name, tensor in item.tensors.items()}
    if branch:
        tensors |= {f"branch.{name}": tensor.numpy(force=True) for name, tensor in branch.tensors.items()}
    if detector and manifest.enforce:
        tensors |= {
            "detector.threshold": np.array(detector.threshold, np.float32),
            "detector.refusal_token": np.array(detector.refusal_token, np.int64),
        }
    terms = low_rank_terms(updates)
    for name, (down, up) in terms.items():
        tensors |= {f"update.{name}.down": down, f"update.{name}.up": up}
    tensors |= _values([update for update in updates if update.parameter not in terms])
    theirs = {
        "interventions": [described(one) for one in items],
        "updates": sorted(name for name in tensors if name.startswith("update.")),
        "branch": [branch.op, str(branch.safety), str(branch.fused)] if branch else None,
        "detector": detector is not None,
        "enforce": manifest.enforce,
    }
    what = " and ".join(adapter.info.method for adapter in adapters)
    if difference := _difference(signature(manifest), theirs):
        raise UsageError(f"{what} cannot take the place of the export's adapter: {difference}.", _ADVICE)
    sources = {one.source: one for one in manifest.parameters}
    arrays = {}
    for source, array in tensors.items():
        one = sources.get(source)
        if one is not None:
            array = np.atleast_1d(array.T if one.transposed else array)
        arrays[one.name if one else source] = array
    return Swap(checked(arrays, manifest, what), detector)


def _values(updates: Sequence[Any]) -> dict[str, np.ndarray]:
    """New values of weights: the last one given, and what is added to it after."""
    from ...adapters.artifact.updates import by_parameter, compose

    found = {}
    for name, mine in by_parameter(updates).items():
        last = max(at for at, update in enumerate(mine) if not update.low_rank)
        found[f"update.{name}"] = compose(mine[last:], None).float().numpy()
    return found


def _difference(ours: Any, theirs: Any) -> str | None:
    """The first thing in which two signatures differ, in words."""
    left, right = ours["interventions"], theirs["interventions"]
    if len(left) != len(right):
        return f"it has {len(right)} interventions, the export {len(left)}"
    for index, (mine, other) in enumerate(zip(left, right, strict=True)):
        names = ("op", "site", "scope", "phase", "gate", "further sites read")
        for name, before, after in zip_longest(names, mine, other, fillvalue="none"):
            if before != after:
                return f"the {name} of intervention {index} is {after}, the export's is {before}"
    if ours["updates"] != theirs["updates"]:
        apart = sorted(set(ours["updates"]) ^ set(theirs["updates"]))
        return f"only one of them changes {apart[0].removeprefix('update.')}"
    for name, words in (("branch", "branch"), ("detector", "detector"), ("enforce", "enforced refusal")):
        if ours[name] != theirs[name]:
            return f"its {words} is not the export's"
    return None


def checked(arrays: Arrays, manifest: ExportManifest, where: str) -> dict[str, np.ndarray]:
    """``arrays`` in the types of the graphs, if they are exactly the parameters of an export.

    Raises:
        InvalidArtifact: one is missing, unknown, of another shape, not finite or too large for the graph's type.
    """
    wanted = {one.name: one for one in manifest.parameters}
    advice = "Take the adapter from its source again, or export it anew."
    if missing := sorted(wanted.keys() - arrays.keys()):
        raise InvalidArtifact(f"{where} lacks the parameter {missing[0]}.", advice)
    if unknown := sorted(arrays.keys() - wanted.keys()):
        raise InvalidArtifact(f"{where} holds {unknown[0]}, which is no parameter of the export.", advice)
    found: dict[str, np.ndarray] = {}
    for graph in GRAPHS:
        sizes: dict[str, int] = {}
        for one in manifest.parameters:
            if one.graph != graph:
                continue
            array = arrays[one.name]
            fits = len(array.shape) == len(one.shape) and all(
                sizes.setdefault(size, have) == have and have > 0 if isinstance(size, str) else size == have
                for size, have in zip(one.shape, array.shape, strict=True)
            )
            if not fits or array.dtype.kind != np.dtype(one.dtype).kind:
                raise InvalidArtifact(
                    f"{where}: {one.name} is {array.dtype} {list(array.shape)}, not {one.dtype} "
                    f"[{', '.join(map(str, one.shape))}].",
                    advice,
                )
            with np.errstate(over="ignore"):
                cast = np.asarray(array.astype(one.dtype), order="C")
            if cast.dtype.kind == "f" and not np.isfinite(cast).all():
                raise InvalidArtifact(f"{where}: {one.name} is not finite in {one.dtype}.", advice)
            found[one.name] = cast
    return found
