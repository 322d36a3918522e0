"""What the core leaves out, and which command brings it.

The core runs, checks and evaluates exports. Whatever needs PyTorch comes by the extra ``fit``, ONNX Runtime by ``cpu``
or ``gpu``, and so on. A package that is missing is named by the command that installs it.
"""

from __future__ import annotations

from .errors import UsageError

# Import name → its extra, and how people call it.
_PACKAGES = {
    "torch": ("fit", "PyTorch"),
    "peft": ("fit", "PEFT"),
    "accelerate": ("fit", "Accelerate"),
    "sklearn": ("fit", "scikit-learn"),
    "threadpoolctl": ("fit", "threadpoolctl"),
    "scipy": ("fit", "SciPy"),
    "concept_erasure": ("fit", "concept-erasure"),
    "onnx": ("fit", "onnx"),
    "onnxscript": ("fit", "ONNX Script"),
    "onnx_ir": ("fit", "onnx-ir"),
    "matplotlib": ("fit", "matplotlib"),
    "cyclonedx": ("fit", "cyclonedx-python-lib"),
    "onnxruntime": ("cpu", "ONNX Runtime"),
    "onnxruntime_genai": ("genai", "ONNX Runtime GenAI"),
    "faiss": ("retrieval", "FAISS"),
    "pyarrow": ("parquet", "pyarrow"),
    "model_signing": ("sign", "model-signing"),
    "fastapi": ("serve", "FastAPI"),
    "uvicorn": ("serve", "uvicorn"),
    "prometheus_client": ("serve", "prometheus-client"),
    "openai": ("serve", "OpenAI's client"),
    "OpenSSL": ("sign", "pyOpenSSL"),
}
# In a clone, before anything is installed; the file pins the versions that were tested.
IN_A_CLONE = 'pip install -c constraints.txt ".[{extras}]"'


class MissingExtra(UsageError, ImportError):
    """A package that the core leaves out is needed and not installed."""


def install(extra: str) -> str:
    """The command that adds an extra to this installation; it looks for no package called safetykit on an index."""
    return f'pip install "safetykit[{extra}]"'


def missing(package: str, what: str = "This") -> MissingExtra:
    """The error for a package of an extra, by its import name.

    Args:
        what: needs it.
    """
    extra, name = _PACKAGES[package]
    other = " On a GPU server take safetykit[gpu] instead." if extra == "cpu" else ""
    return MissingExtra(f"{what} needs {name}, which is not installed.", f"{install(extra)}{other}")


def explained(error: BaseException) -> BaseException:
    """:class:`MissingExtra` for an import that failed because an extra is not installed; any other error as it is."""
    package = (getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and package in _PACKAGES:
        return missing(package)
    return error
