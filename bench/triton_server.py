"""The Triton layout in the real ``tritonserver``: the same answers as `eval` gives, faults, and the server's own load.

    python bench/triton_server.py -o OUT --python PYTHON [--export EXPORT] [--limit 200] [--perf-analyzer PROGRAM]

PYTHON is that of an environment with ``nvidia-pytriton``, which carries the server, and with onnxruntime, tokenizers,
Pillow and ``tritonclient[all]``. That server has no ONNX Runtime backend, so Python models of the same name and
interface run the graphs (``bench/_triton/stand_in.py``); everything else of the repository is the export's.

The export is by default the reference VLM `mild` with a gated corrector and a detector. Its test records are answered
by the export in batches of 32, as `safetykit eval` does; these are the expected answers. Then the server is asked by
``tritonclient``: over HTTP, gRPC, and as gRPC streams, with pictures in the message and attached. Counted are answers
whose text, number of tokens, decision or risk differs, and mixed rows, as in ``bench/serve.py``. Malformed requests are
sent between good ones: each has to fail alone with a typed error. The server is killed while it answers (SIGKILL), and
started again: it has to give the same answers. PROGRAM is NVIDIA's ``perf_analyzer``; without it there are none of its
figures.
"""

from __future__ import annotations

import base64
import csv
import json
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetykit.bench._triton.server import Installed, Running, installed, served, with_stand_ins
from safetykit.bench.clients import TOKENS
from safetykit.bench.load import LOOP, WRONG, Question, compared, percentiles
from safetykit.bench.loops import loops, questions
from safetykit.bench.skeleton import arguments, run, say, write_results, write_table
from safetykit.bench.soak import make_export
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.export.runtime.sessions import cores
from safetykit.toolkit.data.records import load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.asking import request_of

_CLIENT = Path(__file__).with_name("_triton") / "client.py"
_WAYS = ("http", "grpc", "stream")
_WRONG = ("json", "value", "prompt", "image", "image_url", "base64")
_CODES = ("unsupported_parameter", *(f"invalid_{one}" for one in _WRONG))
_AGAIN = 40  # records that a restarted server is asked
_USED = ("messages", "max_tokens", "temperature")


def line(question: Question, *, attached: bool) -> dict[str, Any]:
    """A question as ``client.py`` takes it, its picture in the message or attached."""
    body, picture = {name: question.body[name] for name in _USED}, None
    content = body["messages"][0]["content"]
    if attached and isinstance(content, list) and content[0]["type"] == "image_url":
        picture = content[0]["image_url"]["url"].partition(";base64,")[2]
        body["messages"] = [{"role": "user", "content": content[1]["text"]}]
    return {"request": json.dumps(body), "picture": picture}


def malformed(good: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Requests that cannot be answered, by what is wrong."""
    body = json.loads(good["request"])

    def said(**changes: Any) -> dict[str, Any]:
        return {"request": json.dumps({**body, **changes}), "picture": None}

    def shown(url: str) -> list[dict[str, Any]]:
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "what is this ?"}]
        return [{"role": "user", "content": parts}]

    return {
        "no JSON": {"request": "{", "picture": None},
        "no object": {"request": "[]", "picture": None},
        "deep nesting": {"request": "[" * 100_000, "picture": None},
        "no messages": {"request": "{}", "picture": None},
        "half a surrogate pair": said(messages=[{"role": "user", "content": "\ud83d"}]),
        "a system message": said(messages=[{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]),
        "an empty prompt": said(messages=[{"role": "user", "content": " "}]),
        "a prompt of 400 words": said(messages=[{"role": "user", "content": "club " * 400}]),
        "a temperature": said(temperature=1),
        "an unknown field": said(tools=[{}]),
        "too many tokens": said(max_tokens=10**6),
        "a picture's address": said(messages=shown("http://127.0.0.1/a.png")),
        "no base64": said(messages=shown("data:image/png;base64,???")),
        "no picture": said(messages=shown("data:image/png;base64,aGVsbG8=")),
        "an attached file that is no picture": {**good, "picture": base64.b64encode(b"%!PS").decode()},
    }


def asked(found: Installed, how: str, server: Running, lines: Sequence[Mapping[str, Any]], clients: int) -> Any:
    """What ``client.py`` gets."""
    address = server.http if how == "http" else server.grpc
    text = "".join(json.dumps(one) + "\n" for one in lines)
    command = [str(found.python), str(_CLIENT), how, address, str(clients)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    return [json.loads(one) for one in done.stdout.splitlines()]


def tallied(questions: Sequence[Question], answers: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """How many answers differ from the expected ones, by what differs."""
    canaries, tally = {one.canary for one in questions if one.canary}, Counter[str]()
    for question, answer in zip(questions, answers, strict=True):
        tally.update(compared(question, answer["response"], canaries) if "response" in answer else {"failed": 1})
    return tally


def faults(found: Installed, server: Running, questions: Sequence[Question], clients: int) -> dict[str, Any]:
    """Malformed requests between good ones: how each fails, and whether the good ones are answered as ever."""
    good = [line(one, attached=False) for one in questions]
    bad = malformed(good[0])
    mixed = [one for at, one in enumerate(good) for one in (one, [*bad.values()][at % len(bad)])]
    kinds: dict[str, Any] = {}
    tally: Counter[str] = Counter()
    for how in _WAYS:
        answers = asked(found, how, server, mixed, clients)
        tally += tallied(questions, answers[::2])
        for name, answer in zip(bad, answers[1::2], strict=False):
            kinds.setdefault(name, {})[how] = [answer.get("status"), answer.get("error", "answered")]
    return {"kinds": kinds, "tally": dict(tally)}


def killed(
    found: Installed, repository: Path, work: Path, questions: Sequence[Question], clients: int
) -> dict[str, Any]:
    """The server is killed while it answers; what a new one then gives."""
    lines = [line(one, attached=False) for one in questions]
    with served(found, repository, work) as server:
        threading.Thread(target=_kill_at, args=(server, _AGAIN), daemon=True).start()
        answers = asked(found, "grpc", server, lines * 20, clients)
    lost = Counter("answered" if "response" in one else "failed" for one in answers)
    began = time.perf_counter()
    with served(found, repository, work) as server:
        ready = time.perf_counter() - began
        tally = tallied(questions, asked(found, "http", server, lines, clients))
    return {"killed": dict(lost), "ready": ready, "tally": dict(tally)}


def _kill_at(server: Running, requests: int) -> None:
    """Kill the server when it has answered so many requests."""
    while server.process.poll() is None and server.answered("chat") < requests:
        time.sleep(0.1)
    server.kill()


def analysed(program: Path, server: Running, lines: Sequence[Mapping[str, Any]], work: Path) -> list[dict[str, Any]]:
    """perf_analyzer's figures, by how it asks and how many requests are in flight."""
    data, rows = work / "perf.json", []
    made = [{"request": {"content": [one["request"]], "shape": [1]}} for one in lines]
    data.write_text(json.dumps({"data": made}))
    for how, model in (("http", "chat"), ("grpc", "chat"), ("grpc", "chat_stream")):
        out = work / f"perf_{how}_{model}.csv"
        command = [program, "-m", model, "-i", how, "-u", server.http if how == "http" else server.grpc]
        command += ["--input-data", data, "--concurrency-range", "1:9:4", "-f", out]
        command += ["--measurement-mode", "count_windows", "--measurement-request-count", min(len(lines), 60)]
        command += ["--stability-percentage", 999, "--max-trials", 3]
        command += ["--streaming"] if model == "chat_stream" else []
        done = subprocess.run([str(one) for one in command], capture_output=True, text=True)
        if not out.is_file():
            say(f"perf_analyzer gave no figures for {model} over {how}: {(done.stdout + done.stderr)[-500:]}")
            continue
        with out.open() as file:
            for row in csv.DictReader(file):
                rows.append(
                    {"model": model, "how": how, **{key: float(one) for key, one in row.items() if key and one}}
                )
    return sorted(rows, key=lambda row: (row["model"], row["how"], row["Concurrency"]))


def measured(
    export: Path, found: Installed, work: Path, *, limit: int, clients: int, program: Path | None
) -> dict[str, Any]:
    """Everything."""
    records = subset(load_records(data_path("reference"), ["test"]), limit)
    model = OnnxVLM.from_pretrained(export)
    expected = questions(model, records, TOKENS)
    alone = loops(model, [request_of(record) for record in records], TOKENS)[LOOP]()
    model.close()
    repository = with_stand_ins(export, work / "repository")
    lines = [line(one, attached=at % 2 == 1) for at, one in enumerate(expected)]
    results: dict[str, Any] = {"loop": alone, "records": len(expected), "clients": clients, "cpus": cores(), "ways": {}}
    began = time.perf_counter()
    with served(found, repository, work) as server:
        results["ready"], results["server"] = time.perf_counter() - began, server.version()
        for how in _WAYS:
            for count in (1, clients):
                began = time.perf_counter()
                answers = asked(found, how, server, lines, count)
                spent, tally = time.perf_counter() - began, tallied(expected, answers)
                figures = percentiles([one["seconds"] for one in answers])
                pieces = [one["response"].get("pieces", 1) for one in answers if "response" in one]
                told = {**figures, "seconds": spent, "pieces": sum(pieces), "tally": dict(tally)}
                results["ways"][f"{how}, {count}"] = told
                say(f"{how}, {count} clients: {dict(tally)}")
        results["faults"] = faults(found, server, expected[:_AGAIN], clients)
        if program is not None:
            results["perf"] = analysed(program, server, [line(one, attached=False) for one in expected], work)
    results["restart"] = killed(found, repository, work, expected[:_AGAIN], clients)
    return results


def table(results: Mapping[str, Any]) -> str:
    """Answers by how they are asked, faults, and perf_analyzer's figures."""
    loop, found, again = (results[name] for name in ("loop", "faults", "restart"))
    typed = [is_typed(one) for kind in found["kinds"].values() for one in kind.values()]
    parts = [
        f"Triton {results['server']}, its graphs' models run by onnxruntime in its Python backend; {results['records']}"
        f" records; {results['cpus']} cores, shared by clients and server. Ready after {results['ready']:.0f} s.",
        "\n".join(
            [
                f"| asked by | answers | refusals | p50, ms | p95, ms | tokens a second | {' | '.join(WRONG)} |",
                "|---|" + "---:|" * (5 + len(WRONG)),
                f"| a loop without a server | {results['records']} | | {_milliseconds(loop)} |"
                f" {loop['tokens_per_second']:.0f} |" + " |" * len(WRONG),
                *(_row(name, one) for name, one in results["ways"].items()),
            ]
        ),
        f"Malformed requests of {len(found['kinds'])} kinds, between good ones: {sum(typed)} of {len(typed)} got a"
        f" typed error, and of {found['tally']['answers']} good ones {_wrong(found['tally'])} another answer.",
        f"Killed while it answered ({again['killed'].get('answered', 0)} were answered before, the others failed), and"
        f" started again, ready after {again['ready']:.0f} s: of {again['tally']['answers']} answers"
        f" {_wrong(again['tally'])} another than before.",
    ]
    if results.get("perf"):
        rows = ["| model | over | in flight | requests a second | p50, ms | p95, ms |", "|---|---|---:|---:|---:|---:|"]
        for one in results["perf"]:
            p50, p95 = (one[f"{name} latency"] / 1000 for name in ("p50", "p95"))
            what = f"| `{one['model']}` | {one['how']} | {one['Concurrency']:.0f} |"
            rows.append(f"{what} {one['Inferences/Second']:.0f} | {p50:.0f} | {p95:.0f} |")
        parts += ["`perf_analyzer`, the same records' requests:", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _row(name: str, one: Mapping[str, Any]) -> str:
    (how, count), tally = name.split(", "), one["tally"]
    what = {"http": "HTTP", "grpc": "gRPC", "stream": "gRPC, as streams"}[how]
    wrong = " | ".join(str(tally.get(kind, 0)) for kind in WRONG)
    rate = tally.get("tokens", 0) / one["seconds"]
    answers = f"{tally.get('answers', 0)} | {tally.get('refusals', 0)}"
    return f"| {what}, {count} at once | {answers} | {_milliseconds(one)} | {rate:.0f} | {wrong} |"


def _milliseconds(one: Mapping[str, float]) -> str:
    return f"{1000 * one['p50']:.0f} | {1000 * one['p95']:.0f}"


def _wrong(tally: Mapping[str, int]) -> int:
    return sum(tally.get(kind, 0) for kind in WRONG)


def is_typed(told: Sequence[str]) -> bool:
    """Whether a request failed as a wrong one: by its status, where streams have none, and the code of its message."""
    status, message = told
    return status in ("400", "StatusCode.INVALID_ARGUMENT", "None") and message.split(":")[0] in _CODES


def main(given: Sequence[str] | None = None) -> int:
    """Measure, and write the table; 1 if an answer was wrong or a fault was not told as one."""
    parser = arguments(__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results, and for the default export")
    parser.add_argument("--python", type=Path, required=True, help="of the environment of the server")
    parser.add_argument("--export", type=Path, help="an export of the layout triton; by default one is made")
    parser.add_argument("--limit", type=int, default=200, help="of records, spread over the groups")
    parser.add_argument("--clients", type=int, default=8, help="that ask at once")
    parser.add_argument("--perf-analyzer", type=Path, help="the program; without it there are none of its figures")
    options = parser.parse_args(given)
    found = installed(options.python)
    options.out.mkdir(parents=True, exist_ok=True)
    export = options.export or make_export(options.out, layout="triton")
    with tempfile.TemporaryDirectory(dir=options.out) as work:
        results = measured(
            export, found, Path(work), limit=options.limit, clients=options.clients, program=options.perf_analyzer
        )
    write_results(options.out / "triton_server.json", results)
    write_table(options.out / "triton_server.md", table(results))
    tallies = [one["tally"] for one in (*results["ways"].values(), results["faults"], results["restart"])]
    kinds = [one for kind in results["faults"]["kinds"].values() for one in kind.values()]
    return int(any(map(_wrong, tallies)) or not all(map(is_typed, kinds)))


if __name__ == "__main__":
    run(main)
