"""`safetykit doctor`: what is installed, and what ONNX Runtime really gives on this machine."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ...toolkit.commands.options import Json
from ..runtime.sessions import installed_packages, placement, require_one_package

if TYPE_CHECKING:
    from rich.console import Console

_PACKAGES = (
    "safetykit",
    "torch",
    "transformers",
    "safetensors",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "scikit-learn",
    "typer",
)
# The ONNX model y = x x for x [2, 2], opset 20, IR 10: written out, since the core has no package to make it with.
_MATMUL = (
    b'\x08\n:D\n\x11\n\x01x\n\x01x\x12\x01y"\x06MatMul\x12\x05probe'
    b"Z\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x02\n\x02\x08\x02B\x04\n\x00\x10\x14"
)


def doctor(as_json: Json = False) -> None:
    from ...toolkit.commands import console

    console.emit(examine(), as_json=as_json, human=_view, then=console.command_line("demo"))


def _view(console: Console, value: dict[str, Any]) -> None:
    """Show the result in the terminal."""
    from ...toolkit.commands.views import facts

    rows = [*value["versions"].items(), (value["onnxruntime"]["package"], value["onnxruntime"]["version"])]
    for name, starts in value["providers"].items():
        rows.append(
            (name, "[green]starts[/green]" if starts else "[red]listed, but a session does not compute with it[/red]")
        )
    facts(console, f"Python {value['python']} on {value['platform']}", rows)


def examine() -> dict[str, Any]:
    """Versions, the ONNX Runtime package in use, and the providers that a session really gets.

    A provider that is listed but does not compute is shown with ``False``: it does not start, or it starts and
    takes no node. ONNX Runtime itself falls back to the CPU without an error.

    Raises:
        UsageError: no ONNX Runtime package is installed, or two that overwrite each other.
    """
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    require_one_package()
    ((package, package_version),) = installed_packages().items()
    import onnxruntime

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
        "onnxruntime": {"package": package, "version": package_version},
        "providers": {name: _starts(name) for name in onnxruntime.get_available_providers()},
    }


def _starts(provider: str) -> bool:
    """Whether a session asked for ``provider`` computes a matrix product with it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = onnxruntime.InferenceSession(_MATMUL, options, providers=[provider])
        return placement(session) == [("MatMul", provider)]
    except Exception:  # ONNX Runtime's exceptions have no public base class; any of them means it does not start
        return False
