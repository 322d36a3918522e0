"""Modules that must not load torch: the command line's help, settings, records, and all that runs an export."""

import subprocess
import sys

TORCH_FREE = [
    "safetykit",
    "safetykit.cli",
    "safetykit.adapters.artifact.manifest",
    "safetykit.adapters.errors",
    "safetykit.adapters.settings",
    "safetykit.export.manifest",
    "safetykit.export.runtime.answer",
    "safetykit.export.runtime.onnx_vlm",
    "safetykit.serve.running",
    "safetykit.toolkit.data.records",
    "safetykit.toolkit.families",
]


def test_they_load_without_torch():
    code = (
        "import importlib, sys\n"
        f"for name in {TORCH_FREE}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
