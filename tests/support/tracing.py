"""Tracing would take most of the suite's time: what it repeats is done once, for all tests, commands and workers."""

from __future__ import annotations

import copy
import functools
import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from shared import once
from torch._export import utils as operators
from torch.onnx._internal.exporter._registration import ONNXRegistry

from safetykit.adapters.artifact.manifest import load_sealed
from safetykit.export.base import own, tracing
from safetykit.export.base.int4 import INT4_CHOICES, Int4Options
from safetykit.export.foreign import importing
from safetykit.export.manifest import GRAPHS, LAYOUT, ExportManifest
from safetykit.export.parity import compare
from safetykit.export.pipeline import write

_DTYPE = re.compile(r'"dtype": "\w+",?')
_REAL = tracing.trace
_STEPS = compare.CACHED_STEPS


def share_bases(patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have ``write_base`` copy what it wrote before for a model of the same class, configuration, weights and files.

    A test that puts something else in the place of ``export_graph`` gets what it put there.
    """
    traced, traces = own.write_base, own.export_graph

    def write_base(vlm, folder, precision, progress=None, *, wanted=GRAPHS, fused=True, int4=None):
        if own.export_graph is not traces:
            return traced(vlm, folder, precision, progress, wanted=wanted, fused=fused, int4=int4)
        for name in wanted if progress else ():
            progress(f"exporting {name}")
        rounding = (int4 or Int4Options()).model_dump(include=set(INT4_CHOICES)) if precision == "int4" else {}
        words = "-".join(map(str, (precision, *rounding.values(), fused, *wanted)))

        def make(made):
            made.mkdir()
            with _shared_traces(tmp_path_factory):
                traced(vlm, made, precision, wanted=wanted, fused=fused, int4=int4)

        done = once(tmp_path_factory, f"base-{words}-{_identity(vlm)}", make)
        shutil.copytree(done, folder, dirs_exist_ok=True)
        path = folder / LAYOUT.manifest
        return load_sealed(ExportManifest, path.read_bytes(), str(path))

    for module in (own, write, importing):
        patch.setattr(module, "write_base", write_base)


@contextmanager
def _shared_traces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models that differ in their weights alone are traced once."""

    def trace(spec: Any, dtype: torch.dtype) -> torch.onnx.ONNXProgram:
        def make(folder: Path) -> None:
            folder.mkdir()
            model = _REAL(spec, dtype).model
            for name in dict(spec.module.named_parameters(remove_duplicate=False)):
                if (value := model.graph.initializers.get(name)) is not None:
                    absent = ir.ExternalTensor("absent", 0, 0, value.dtype, shape=value.shape, name=name)
                    value.const_value = absent  # its values are put in by name
            ir.save(model, folder / "trace.onnx")

        model = ir.load(once(tmp_path_factory, f"trace-{_structure(spec, dtype)}", make) / "trace.onnx")
        return torch.onnx.ONNXProgram(model, None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "trace", trace)
        yield


def _structure(spec: Any, dtype: torch.dtype) -> str:
    """All that a trace depends on: weights are not among it, other tensors are."""
    module = spec.module
    digest = hashlib.sha256(f"{module} {dtype} {spec.inputs} {spec.outputs} {spec.taps} {spec.dynamic}".encode())
    for name, value in sorted(vars(module).items()):
        digest.update(f"{name} {type(value)} {value if isinstance(value, bool | str | tuple) else ''}".encode())
    for part in module.modules():
        config = _DTYPE.sub("", str(getattr(part, "config", None)))  # the graph's own type is traced
        digest.update(f"{type(part)} {config}".encode())
    for name, tensor in module.named_parameters():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
    for name, tensor in module.named_buffers():
        digest.update(
            name.encode() + tensor.detach().contiguous().view(-1).view(torch.uint8).numpy(force=True).tobytes()
        )
    return digest.hexdigest()


def compare_fewer_steps(patch: pytest.MonkeyPatch) -> None:
    """Have parity compare four cached steps where nobody says how many."""
    patch.setattr(compare, "CACHED_STEPS", 4)


@contextmanager
def all_steps() -> Iterator[None]:
    """Have parity compare as many as for a user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "CACHED_STEPS", _STEPS)
        yield


def share_translations(patch: pytest.MonkeyPatch) -> None:
    """Have the exporter read the sources of its translations, and list torch's operators, once a process."""
    read = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(**version):
        registry = copy.copy(read(**version))
        registry.functions = {target: list(found) for target, found in registry.functions.items()}
        return registry

    patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(from_torchlib))
    patch.setattr(operators, "_materialize_cpp_cia_ops", functools.cache(operators._materialize_cpp_cia_ops))


def _identity(vlm: Any) -> str:
    digest = hashlib.sha256(f"{type(vlm.model)} {vlm.model.config} {vlm.fingerprint}".encode())
    for name, tensor in sorted(vlm.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device}".encode())
        if not tensor.is_meta:  # those that were not loaded are the files', which the fingerprint knows
            digest.update(tensor.detach().contiguous().view(torch.uint8).numpy(force=True).tobytes())
    return digest.hexdigest()[:32]
