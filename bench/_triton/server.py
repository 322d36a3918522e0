"""The real ``tritonserver`` of ``nvidia-pytriton``, which has the Python backend and no ONNX Runtime backend.

The package stands in an environment of its own (it wants NumPy below 2), together with what the repository's Python
models import: onnxruntime, tokenizers and Pillow. The graphs' models run there by :mod:`.stand_in`; the rest of the
repository is the export's, byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetykit.adapters.errors import UsageError
from safetykit.export.layouts.runtimes.triton import CONFIG, REPOSITORY
from safetykit.export.manifest import GRAPHS

ENVIRONMENT = "SAFETYKIT_TRITON"  # names the Python of such an environment
_STAND_IN = Path(__file__).with_name("stand_in.py")
_WHERE = """
import json, os, sys, sysconfig, importlib.util
found = importlib.util.find_spec("pytriton")
print(json.dumps({"package": os.path.dirname(found.origin) if found else None,
    "lib": sysconfig.get_config_var("LIBDIR"), "version": "%d.%d" % sys.version_info[:2], "prefix": sys.prefix}))
"""


@dataclass(frozen=True)
class Installed:
    """Where the server is.

    Attributes:
        python: of its environment.
        home: the folder of the server.
        libraries: where it finds its own and Python's.
        version: of Python, such as ``3.11``.
    """

    python: Path
    home: Path
    libraries: str
    version: str


@dataclass
class Running:
    """A server that is ready; ``http`` and ``grpc`` are addresses."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str

    def version(self) -> str:
        """What it says of itself."""
        with urllib.request.urlopen(f"http://{self.http}/v2", timeout=5) as response:
            return str(json.load(response)["version"])

    def answered(self, model: str) -> int:
        """How many requests a model has answered."""
        with urllib.request.urlopen(f"http://{self.http}/v2/models/{model}/stats", timeout=5) as response:
            (stats,) = json.load(response)["model_stats"]
        return int(stats["inference_stats"]["success"]["count"])

    def kill(self) -> None:
        """End it as a crash would, its models' processes with it."""
        os.killpg(self.process.pid, 9)
        self.process.wait()


def installed(python: Path) -> Installed:
    """The server in the environment of this Python.

    Raises:
        UsageError: there is none.
    """
    try:
        done = subprocess.run([python, "-c", _WHERE], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"{python} is no Python ({error}).", "Give the Python of the server's environment.") from None
    told = json.loads(done.stdout)
    if told["package"] is None:
        raise UsageError(
            f"{python} does not know pytriton.",
            f"{python} -m pip install nvidia-pytriton onnxruntime tokenizers pillow 'tritonclient[all]' perf-analyzer",
        )
    package = Path(told["package"])
    libraries = f"{package.parent / 'nvidia_pytriton.libs'}:{told['lib']}"
    return Installed(python, package / "tritonserver", libraries, told["version"])


def with_stand_ins(export: Path, target: Path) -> Path:
    """The model repository of an export, copied; its graphs are run by :mod:`.stand_in`."""
    shutil.copytree(export / REPOSITORY, target)
    for name in GRAPHS:
        config = target / name / CONFIG
        text = config.read_text().replace('backend: "onnxruntime"', 'backend: "python"')
        config.write_text(re.sub(r"default_model_filename: .*\n", "", text))
        shutil.copyfile(_STAND_IN, target / name / "1" / "model.py")
    return target


@contextlib.contextmanager
def served(found: Installed, repository: Path, work: Path, *, seconds: float = 120) -> Iterator[Running]:
    """The server with this repository, at free ports of this machine; its log is ``work/triton.log``.

    Raises:
        UsageError: it ends or is not ready in time.
    """
    backends = work / "backends" / "python"
    if not backends.is_dir():
        shutil.copytree(found.home / "backends" / "python", backends)
        stub = found.home / "python_backend_stubs" / found.version / "triton_python_backend_stub"
        shutil.copy(stub, backends)
    ports = _free_ports(3)
    command = [found.home / "bin" / "tritonserver", "--model-repository", repository, "--exit-on-error", "true"]
    command += ["--backend-directory", backends.parent, "--allow-gpu-metrics", "false"]
    for name, port in zip(("http", "grpc", "metrics"), ports, strict=True):
        command += [f"--{name}-address", "127.0.0.1", f"--{name}-port", port]
    bin_folder = found.python.parent
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "LD_LIBRARY_PATH": found.libraries,
        "PATH": f"{bin_folder}:{os.environ.get('PATH', '')}",
        "VIRTUAL_ENV": str(bin_folder.parent),
    }
    with (work / "triton.log").open("ab") as log:
        process = subprocess.Popen(
            [str(one) for one in command], stdout=log, stderr=log, env=environment, start_new_session=True
        )
    running = Running(process, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
    try:
        _wait(running, work / "triton.log", seconds)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)


def _wait(running: Running, log: Path, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and running.process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{running.http}/v2/health/ready", timeout=5):
            return
        time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise UsageError(f"The server is not ready.\n{tail}", f"See {log}.")


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports
