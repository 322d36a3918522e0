"""Opening ONNX Runtime sessions that run where they were asked to run."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ...adapters.artifact.hub import weights_folder
from ...adapters.errors import InvalidArtifact, UsageError
from ...adapters.extras import install, missing
from ...toolkit.distributed.job import local_rank

if TYPE_CHECKING:
    import onnxruntime

CPU = ("CPUExecutionProvider",)
# Providers that have devices by number, and how ONNX Runtime calls those.
DEVICES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "NvTensorRTRTXExecutionProvider": "cuda",
}
_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_ERRORS_ONLY = 3
# What a decoder's time goes into. Shapes and indices may run on the CPU beside a GPU, and are put there on purpose.
_COMPUTE = frozenset(
    (
        *("MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulNBits", "Conv", "FusedConv", "Softmax"),
        *("Attention", "MultiHeadAttention", "GroupQueryAttention", "RotaryEmbedding"),
        *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"),
        *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"),
    )
)


_SPARING: ContextVar[bool] = ContextVar("sparing", default=False)
_THREADS: ContextVar[int] = ContextVar("threads", default=0)  # 0: as many as there are cores


@contextmanager
def sparing_memory(on: bool = True) -> Iterator[None]:
    """Have sessions on the CPU that are opened in the block leave weights in their files.

    As they are, they hold a second copy of the weights, in float32 where the graph has float16, and in the order in
    which products read them. Without it each product converts its weights when it runs, in memory that the next one
    takes over, and no nodes are fused that need converted weights.
    """
    token = _SPARING.set(on)
    try:
        yield
    finally:
        _SPARING.reset(token)


def require_cores(threads: int | None, spelled: str) -> None:
    """Refuse more threads than this machine has cores: they would wait for one another, and very many bring it down.

    Args:
        spelled: how the user says the number.

    Raises:
        UsageError: see above.
    """
    if threads is not None and threads > (most := cores()):
        raise UsageError(
            f"{spelled} {threads} is more than this machine has cores ({most}).", "Take no more than that."
        )


def cores() -> int:
    """Of this machine, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Have sessions that are opened in the block compute with so many threads on the CPU; None: one for each core."""
    token = _THREADS.set(threads or 0)
    try:
        yield
    finally:
        _THREADS.reset(token)


def installed_packages() -> dict[str, str]:
    """Installed ONNX Runtime distributions and their versions."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def require_one_package() -> None:
    """Refuse an environment in which two ONNX Runtime packages have overwritten each other.

    Raises:
        UsageError: none or both are installed.
    """
    found = installed_packages()
    if len(found) > 1:
        raise UsageError(
            f"{' and '.join(found)} are both installed; they overwrite each other's files.",
            f"Uninstall both, then install one: {install('cpu')}, or {install('gpu')}.",
        )
    if not found:
        raise missing("onnxruntime", "Running an export")


def open_session(
    model: Path | bytes, providers: Sequence[str] = CPU, *, data_folder: Path | None = None
) -> onnxruntime.InferenceSession:
    """Open a graph.

    Args:
        model: path of the graph, or its bytes.
        providers: execution providers, all of which the session must really get. Unless the CPU's is among them, no
            matrix product, norm or attention may be left to it either.
        data_folder: where external data lies, for a graph given as bytes.

    Raises:
        UsageError: no single ONNX Runtime package, or the session or some of its nodes fell back to other providers.
        InvalidArtifact: ONNX Runtime cannot load the graph.
    """
    require_available(providers)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.intra_op_num_threads = _THREADS.get()
    # Idle threads that spin take the cores from PyTorch, which parity runs in turn with ONNX Runtime.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # One is kept for every shape that ever came, and of prompts and answers there are always new ones.
    options.enable_mem_pattern = False
    if _SPARING.get() and tuple(providers) == CPU:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.execution_order = (
            onnxruntime.ExecutionOrder.PRIORITY_BASED
        )  # convert where it is read, not at the start
        options.add_session_config_entry("session.disable_prepacking", "1")
    if isinstance(model, bytes) and data_folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(weights_folder(data_folder))
        )
    strict = CPU[0] not in providers
    if strict:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        source = model if isinstance(model, bytes) else str(model)
        session = onnxruntime.InferenceSession(source, options, providers=[_placed(name) for name in providers])
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        name = "the graph" if isinstance(model, bytes) else str(model)
        raise InvalidArtifact(f"ONNX Runtime cannot load {name}: {error}", "Export the model again.") from None
    # Asked for a provider that does not start, ONNX Runtime falls back silently.
    _require_given(providers, session.get_providers())
    if strict and (left := Counter(op for op, provider in placement(session) if provider == CPU[0] and op in _COMPUTE)):
        what = ", ".join(f"{count} {name}" for name, count in sorted(left.items()))
        raise UsageError(
            f"Under {', '.join(providers)}, ONNX Runtime leaves nodes of {_named(model)} to the CPU: {what}.",
            f"Add --provider {CPU[0]} to accept that, or export the model for this provider or in fp16.",
        )
    return session


def require_available(providers: Sequence[str]) -> None:
    """Refuse providers that this ONNX Runtime does not have, before anything is opened.

    Raises:
        UsageError: naming them; or there is no single ONNX Runtime package.
    """
    require_one_package()
    import onnxruntime

    _require_given(providers, onnxruntime.get_available_providers())


def _require_given(providers: Sequence[str], given: Sequence[str]) -> None:
    if missing := [name for name in providers if name not in given]:
        raise UsageError(
            f"ONNX Runtime does not give {', '.join(missing)} here.",
            "Run `safetykit doctor`, or ask for a provider that it lists.",
        )


def _placed(provider: str) -> str | tuple[str, dict[str, int]]:
    """A provider on the device of this process, where a job has several on this machine."""
    at = local_rank()
    return (provider, {"device_id": at}) if at and provider in DEVICES else provider


def placement(session: onnxruntime.InferenceSession) -> list[tuple[str, str]]:
    """Operator and provider of every node, as the session has placed them."""
    parts = session.get_provider_graph_assignment_info()
    return [(node.op_type, part.ep_name) for part in parts for node in part.get_nodes()]


def _named(model: Path | bytes) -> str:
    return "the graph" if isinstance(model, bytes) else model.name
