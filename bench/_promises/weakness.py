"""What would weaken safety without a word: ops that do nothing, gates that never open, settings that nobody reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import safetensors.torch
import torch

from safetykit.adapters.artifact.adapter import Adapter
from safetykit.adapters.artifact.files import MANIFEST, sha256_file
from safetykit.adapters.artifact.folder import TENSORS
from safetykit.adapters.artifact.sites import Site
from safetykit.adapters.artifact.store import load_adapter, manifest_digest
from safetykit.adapters.artifact.updates import WeightUpdate
from safetykit.adapters.errors import InvalidArtifact, ParityFailed, SafetykitError, UsageError
from safetykit.adapters.one_pass.settings import OnePassProbe
from safetykit.adapters.registry import get_method
from safetykit.adapters.vlm_guard.settings import VLMGuard
from safetykit.export.manifest import GRAPHS, LAYOUT, read_manifest, write_manifest
from safetykit.export.pipeline.export import export_onnx
from safetykit.toolkit.commands.fit_one import fit_with
from safetykit.toolkit.workbench import Workbench

from .files import seal
from .row import Figure, Place, Row, Tally, command

EDITS = 3  # weights of each graph that are changed, one export each


def with_tensors(adapter: Adapter, **values: Callable[[torch.Tensor], torch.Tensor]) -> Adapter:
    """The adapter with other parameters in all of its interventions."""
    items = tuple(
        replace(
            item, tensors={name: values.get(name, lambda same: same)(tensor) for name, tensor in item.tensors.items()}
        )
        for item in adapter.interventions
    )
    return replace(adapter, interventions=items)


def no_op(place: Place) -> Figure:
    """Adapters that would change nothing, or act on nothing, given to an export."""
    tally, adapter = Tally(), place.adapter
    name, weight = next((n, w) for n, w in place.vlm.model.named_parameters() if n.endswith("mlp.down_proj.weight"))
    width, inner = weight.shape
    nothing = {"up": torch.zeros(width, 1), "down": torch.zeros(1, inner)}
    moved = {"up": torch.ones(width, 1), "down": torch.ones(1, inner)}
    cases: Mapping[str, Callable[[], Adapter]] = {
        "a strength of 0": lambda: with_tensors(adapter, alpha=torch.zeros_like),
        "a strength of 1e-30": lambda: with_tensors(adapter, alpha=lambda one: one * 0 + 1e-30),
        "a basis of zeros": lambda: with_tensors(adapter, basis=torch.zeros_like),
        "a block that is not there": lambda: _at(adapter, Site.block(99)),
        "an adapter that holds nothing": lambda: replace(adapter, interventions=()),
        "an update of zeros": lambda: replace(adapter, interventions=(), updates=(WeightUpdate(name, nothing),)),
        "an update of no weight": lambda: replace(adapter, interventions=(), updates=(WeightUpdate("no.such", moved),)),
    }
    with place.scratch("no-op") as work:
        for name, make in cases.items():
            tally.refused(name, lambda make=make: export_onnx(place.vlm, [make()], work / "out", base_onnx=place.base))
            tally.true(f"{name}: something was left", not any(work.iterdir()))
        out = work / "out"
        tally.accepted("the adapter itself", lambda: export_onnx(place.vlm, [adapter], out, base_onnx=place.base))
    return tally.figure("refused with nothing written, and the real one accepted")


def _at(adapter: Adapter, site: Site) -> Adapter:
    return replace(adapter, interventions=tuple(replace(item, site=site) for item in adapter.interventions))


def parity_blocks(place: Place) -> Figure:
    """Base graphs with one changed weight, sealed again: the export must end with parity's error and leave nothing."""
    tally = Tally()
    with place.scratch("parity") as work:
        for graph in GRAPHS:
            for number in range(place.some(EDITS, 1)):
                spoilt = shutil.copytree(place.base, work / "base")
                changed = _change_weight(spoilt / LAYOUT.graph(graph), number)
                write_manifest(read_manifest(spoilt, verify=False), spoilt)
                act = partial(export_onnx, place.vlm, [place.adapter], work / "out", base_onnx=spoilt)
                tally.refused(f"{graph}: {changed}", act, (ParityFailed,))
                left = sorted(path.name for path in work.iterdir())
                tally.true(f"{graph}: {changed} leaves {left}", left == ["base"])
                if number:
                    shutil.rmtree(spoilt)
                    continue
                words = ("--adapter", place.guard, "--base-onnx", spoilt, "-o", work / "out")
                code, said = command("export", place.model, *words, "-q")
                tally.true(f"{graph}: {changed}: exit code {code}: {said[-200:]}", code == ParityFailed.exit_code)
                shutil.rmtree(spoilt)
    return tally.figure("blocked with exit code 5 and no files")


def _change_weight(path: Path, number: int) -> str:
    """Change a few entries of a graph's weight, the first, the last or one between; its name."""
    model = ir.load(path)
    found = [
        one for one in model.graph.initializers.values() if len(one.shape or ()) == 2 and one.dtype.is_floating_point()
    ]  # type: ignore[union-attr]
    value = found[number * (len(found) - 1) // max(1, EDITS - 1)]
    array = value.const_value.numpy().copy()  # type: ignore[union-attr]
    array.flat[:: max(1, array.size // 31)] += np.asarray(0.05 + 0.5 * abs(array).max(), array.dtype)
    value.const_value = ir.tensor(array, name=value.name)
    ir.save(model, path)
    return str(value.name)


def silent(place: Place) -> Figure:
    """Settings and files that would switch safety off, or that nobody would read."""
    tally = Tally()
    with place.scratch("silent") as work:
        _extremes(place, work, tally)
        _stacks(place, work, tally)
        _settings(place, tally)
        _options(place, work, tally)
    return tally.figure("refused")


def _extremes(place: Place, work: Path, tally: Tally) -> None:
    """Gates and detectors that never act, or always do: in files sealed again, and in memory."""
    for value in (1e30, -1e30, float("inf"), float("nan")):
        folder = shutil.copytree(place.guard, work / "gate")
        tensors = safetensors.torch.load_file(folder / TENSORS)
        tensors |= {name: one * 0 + value for name, one in tensors.items() if name.endswith("threshold")}
        safetensors.torch.save_file(tensors, folder / TENSORS)
        body = json.loads((folder / MANIFEST).read_bytes())
        body["files"][TENSORS] = sha256_file(folder / TENSORS)
        seal(folder / MANIFEST, body)
        tally.refused(f"a gate's threshold of {value} in a file", lambda: load_adapter(folder), SafetykitError)  # noqa: B023
        shutil.rmtree(folder)
        if abs(value) == 1e30:
            act = lambda one=value: export_onnx(  # noqa: E731
                place.vlm,
                [with_tensors(place.adapter, threshold=lambda tensor: tensor * 0 + one)],
                work / "out",
                base_onnx=place.base,
            )
            tally.refused(f"a gate's threshold of {value} in an export", act)
            shutil.rmtree(work / "out", ignore_errors=True)
    probe = _probe(place).save(work / "probe")
    for value in (1e30, -1e30):
        folder = shutil.copytree(probe, work / "detector")
        body = json.loads((folder / MANIFEST).read_bytes())
        body["detector"]["threshold"] = value
        seal(folder / MANIFEST, body)
        tally.refused(f"a detector's threshold of {value} in a file", lambda: load_adapter(folder), SafetykitError)  # noqa: B023
        shutil.rmtree(folder)


def _probe(place: Place, *correctors: Adapter) -> Adapter:
    """A one-pass probe, fitted beside correctors."""
    known = [
        {"method": one.info.method, "variant": one.info.variant, "manifest_sha256": manifest_digest(one)}
        for one in correctors
    ]
    with place.vlm.applied(*correctors):
        bench = Workbench(place.vlm, place.records, refusal="sorry .", corrected_by=known)
        return fit_with(get_method("one-pass"), bench, {"fused_layer": 4})


def _stacks(place: Place, work: Path, tally: Tally) -> None:
    """A detector beside a corrector that it was not fitted under, and one without its own."""
    guard = place.adapter
    for name, stack in (
        ("a detector beside a corrector it does not know", (guard, _probe(place))),
        ("a detector without its corrector", (_probe(place, guard),)),
    ):
        tally.refused(name, lambda stack=stack: export_onnx(place.vlm, stack, work / "out", base_onnx=place.base))
        shutil.rmtree(work / "out", ignore_errors=True)


def _settings(place: Place, tally: Tally) -> None:
    """Names that no setting has, values that none takes, settings without effect: from Python and in a manifest."""
    given: tuple[tuple[Any, dict[str, Any]], ...] = (
        (VLMGuard, {"alfa": 2.0}),
        (VLMGuard, {"alpha": float("nan")}),
        (VLMGuard, {"alpha": float("inf")}),
        (VLMGuard, {"gate": "papr"}),
        (VLMGuard, {"false_positive_rate": 2.0}),
        (VLMGuard, {"false_positive_rate": float("nan")}),
        (OnePassProbe, {"fused": 3}),
        (OnePassProbe, {"false_positive_rate": -1}),
    )
    for kind, values in given:
        tally.refused(f"{kind.__name__}({values})", lambda kind=kind, values=values: kind(**values), UsageError)
    for name, value in (("gate", "papr"), ("rank", -1)):
        with place.scratch("recorded") as work:
            folder = shutil.copytree(place.guard, work / "one")
            body = json.loads((folder / MANIFEST).read_bytes())
            body["info"]["hyperparameters"][name] = value
            seal(folder / MANIFEST, body)
            tally.refused(f"{name}={value} in a manifest", lambda: load_adapter(folder), InvalidArtifact)  # noqa: B023


def _options(place: Place, work: Path, tally: Tally) -> None:
    """Options that are misspelt, take no such value, or would do nothing where they stand; the exit code says so."""
    out, model, export = ("-o", work / "out"), place.model, place.export
    (work / "config.yaml").write_text("alfa: 2\n")
    fit = ("fit", "vlm-guard", model, "--data", "reference", *out)
    bake = ("export", model, "--adapter", place.guard, *out)
    lines: tuple[tuple[Any, ...], ...] = (
        (*fit, "--alfa", 2),
        (*fit, "--alpha", "nan"),
        (*fit, "--alpha", "inf"),
        (*fit, "--config", work / "config.yaml"),
        (*fit, "--layers", 99),
        (*bake, "--recalibrate"),
        (*bake, "--enforce"),
        (*bake, "--gate-state", "cache"),
        (*bake, "--external-index", place.guard),
        (*bake, "--max-flips", "0.1"),
        (*bake, "--max-flips", "nan", "--data", "reference"),
        (*bake, "--rounding", "rtn"),
        (*bake, "--allow-uncorrected-detector"),
        ("export", model, "--mode", "fold", *out),
        ("verify", export, "--swap", place.guard),
        ("verify", export, "--provider", "CPUExecutionProvider"),
        ("verify", place.guard, "--model", model),
        ("verify", place.guard, "--capturable"),
        ("run", export, "--prompt", "x", "--temperature", "nan", "--do-sample"),
        ("run", export, "--prompt", "x", "--temperature", "-1", "--do-sample"),
        ("run", export, "--prompt", "x", "--top-p", "nan", "--do-sample"),
        ("run", export, "--prompt", "x", "--swap", export),
        ("eval", model, "--data", "reference", "--swap", place.guard),
    )
    for words in lines:
        code, said = command(*words)
        tally.true(
            f"{' '.join(map(str, words[2:]))}: exit code {code}: {said[-120:]}",
            code in (UsageError.exit_code, InvalidArtifact.exit_code),
        )
        tally.true(f"{' '.join(map(str, words[2:]))} wrote something", not (work / "out").exists())
        shutil.rmtree(work / "out", ignore_errors=True)


ROWS = (
    Row("no-op", "a bake is never a no-op", "refused where the output does not move or a target is unmatched", no_op),
    Row("parity", "parity failure blocks the export", "no final files, exit code 5", parity_blocks),
    Row(
        "silent",
        "no silent weakness",
        "gates and detectors that never or always act, detectors without their correctors, misspelt and unread "
        "settings: all refused",
        silent,
    ),
)
