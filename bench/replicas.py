"""Two replicas under Ray Serve, one killed under load: the same answers, and nothing lost that a client may ask again.

    python bench/replicas.py -o OUT --python PYTHON [--export EXPORT] [--requests 400] [--clients 4]

PYTHON is that of an environment with ``ray[serve]`` and safetykit. The export is by default that of ``bench/soak.py``;
its test records' expected answers are those of batches of 32, as `safetykit eval` gives. Clients ask
`safetykit.serve.replicas:deployment` for them, and ask again after a failed connection or a status of 5xx or 429, as
OpenAI's clients do. After a third of the requests a replica is killed (SIGKILL). Counted are requests that were asked
again, those that got no answer, and answers that differ, as in ``bench/serve.py``. It ends when Ray has two
replicas again.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safetykit.adapters.errors import UsageError
from safetykit.bench.clients import TOKENS
from safetykit.bench.load import WRONG, Question, compared, percentiles
from safetykit.bench.loops import questions
from safetykit.bench.skeleton import arguments, run, say, write_results, write_table
from safetykit.bench.soak import make_export
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import cores
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path

_DRIVER = Path(__file__).with_name("_replicas") / "driver.py"
_REPLICAS = 2
_TRIES, _PAUSE = 10, 0.5  # of a request; seconds between them
_AGAIN = (429, 500, 502, 503, 504)
_PROCESS = b"ray::ServeReplica"  # how Ray calls a replica's process


@contextlib.contextmanager
def cluster(python: Path, export: Path, log: Path) -> Iterator[tuple[str, int, str]]:
    """Ray's address, the driver's process and Ray's version."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    given = {"export": export.resolve(), "replicas": _REPLICAS, "name": "bench", "cpus": 0.5, "max_queue": 64}
    words = [f"{name}={one}" for name, one in given.items()] + ["allow_anonymous=true"]
    command = [str(one) for one in (python, _DRIVER, port, cores(), *words)]
    with (
        log.open("w") as written,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=written, text=True, start_new_session=True
        ) as process,
    ):
        assert process.stdout is not None and process.stdin is not None
        lines = (line for line in process.stdout if line.startswith("{"))
        try:
            told = json.loads(next(lines, "{}"))
            if not told:
                raise UsageError("Ray did not start.", f"See {log}.")
            yield told["url"], process.pid, told["ray"]
        finally:
            process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)


def replicas(driver: int) -> list[int]:
    """Processes of replicas among the descendants of the driver."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.name)
            parents[pid] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if (path / "cmdline").read_bytes().startswith(_PROCESS):
                found.append(pid)

    def of_driver(pid: int) -> bool:
        return pid == driver or (pid in parents and of_driver(parents[pid]))

    return [pid for pid in found if of_driver(pid)]


class Load:
    """Clients that ask until every request is answered or given up."""

    def __init__(self, url: str, asked: Sequence[Question], requests: int) -> None:
        self._address = urlsplit(url).netloc
        self._numbered = iter(list(itertools.islice(itertools.cycle(asked), requests)))
        self._canaries = {one.canary for one in asked if one.canary}
        self._turn = threading.Lock()
        self.tally: Counter[str] = Counter()
        self.seconds: list[float] = []

    def run(self, clients: int) -> None:
        """Ask everything."""
        threads = [threading.Thread(target=self._client, daemon=True) for _ in range(clients)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()

    def _client(self) -> None:
        while True:
            with self._turn:
                question = next(self._numbered, None)
            if question is None:
                return
            began, tally = time.perf_counter(), Counter[str]()
            value = self._asked(question, tally)
            tally.update({"failed": 1} if value is None else compared(question, value, self._canaries))
            with self._turn:
                self.tally.update(tally)
                self.seconds.append(time.perf_counter() - began)

    def _asked(self, question: Question, tally: Counter[str]) -> dict[str, Any] | None:
        for number in range(_TRIES):
            if number:
                tally["asked again"] += 1
                time.sleep(_PAUSE)
            connection = http.client.HTTPConnection(self._address, timeout=60)
            try:
                connection.request("POST", "/v1/chat/completions", json.dumps(question.body))
                response = connection.getresponse()
                data = response.read()
                if response.status == 200:
                    return dict(json.loads(data))
                tally[f"status {response.status}"] += 1
                if response.status not in _AGAIN:
                    return None
            except (OSError, http.client.HTTPException) as error:
                tally[type(error).__name__] += 1
            finally:
                connection.close()
        return None


def measured(export: Path, python: Path, out: Path, *, limit: int, requests: int, clients: int) -> dict[str, Any]:
    """Everything: load, with a replica killed in it."""
    model = OnnxVLM.from_pretrained(export)
    asked = questions(model, subset(load_records(data_path("reference"), ["test"]), limit), TOKENS)
    model.close()
    with cluster(python, export, out / "ray.log") as (url, driver, version):
        before = replicas(driver)
        load = Load(url, asked, requests)
        thread = threading.Thread(target=load.run, args=(clients,))
        began = time.perf_counter()
        thread.start()
        while len(load.seconds) < requests / 3 and thread.is_alive():
            time.sleep(0.01)
        os.kill(before[0], signal.SIGKILL)
        killed = time.perf_counter()
        thread.join()
        spent = time.perf_counter() - began
        while len(now := replicas(driver)) < _REPLICAS or before[0] in now:
            time.sleep(0.1)
        back = time.perf_counter() - killed
        say(f"{dict(load.tally)}; two replicas again after {back:.0f} s at most")
    return {
        "ray": version,
        "replicas": len(before),
        "requests": requests,
        "clients": clients,
        "cpus": cores(),
        "seconds": spent,
        "back": back,
        **percentiles(load.seconds),
        "tally": dict(sorted(load.tally.items())),
    }


def table(results: Mapping[str, Any]) -> str:
    """What became of the requests."""
    tally = results["tally"]
    kinds = ("answers", "refusals", "asked again", *WRONG)
    failures = {name: count for name, count in tally.items() if name.startswith("status") or name.endswith("Error")}
    said = ", ".join(f"{name}: {count}" for name, count in failures.items()) or "none"
    return "\n".join(
        [
            f"Ray {results['ray']}, {results['replicas']} replicas, one killed after a third of {results['requests']}"
            f" requests by {results['clients']} clients; {results['cpus']} cores, shared by all. Failures that clients"
            f" saw: {said}. Median {1000 * results['p50']:.0f} ms, 95 % within {1000 * results['p95']:.0f} ms.",
            "",
            f"| {' | '.join(kinds)} |",
            "|" + "---:|" * len(kinds),
            f"| {' | '.join(str(tally.get(name, 0)) for name in kinds)} |",
            "",
        ]
    )


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and write the table; 1 if a request was lost or an answer wrong."""
    parser = arguments(__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results, and for the default export")
    parser.add_argument("--python", type=Path, required=True, help="of an environment with ray[serve] and safetykit")
    parser.add_argument("--export", type=Path, help="an export folder; by default that of bench/soak.py")
    parser.add_argument("--limit", type=int, default=100, help="of records, spread over the groups")
    parser.add_argument("--requests", type=int, default=400, help="that are asked in all")
    parser.add_argument("--clients", type=int, default=4, help="that ask at once")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    export = options.export or make_export(options.out)
    limits = {"limit": options.limit, "requests": options.requests, "clients": options.clients}
    results = measured(export, options.python, options.out, **limits)
    write_results(options.out / "replicas.json", results)
    write_table(options.out / "replicas.md", table(results))
    return int(any(results["tally"].get(name) for name in WRONG))


if __name__ == "__main__":
    run(main)
