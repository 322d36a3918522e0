"""Clients and harnesses that others wrote, asking `safetykit serve`, compared with the export's own answers.

    python bench/harnesses.py -o OUT [--export EXPORT] [--envs FOLDER] [--harness openai …] [--limit 40]

The export is by default that of ``bench/soak.py``: the reference VLM `mild` with a gated corrector and a detector. Its
test records are first answered by the export itself; then the export is served, and every harness asks the same
records, greedily, with pictures, through its own provider of OpenAI's interface (``bench/harness/ask_*``). Compared are
decisions (which answers came as refusals, by the harness's own word for them) and texts, where it keeps them; garak
sends its own published probes. Each runs in an environment of its own below ``--envs``, which is made with pip or npm
where it is not there, by package names only. What needs more than that does not run here, and the table says with
which words it failed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetykit.bench.clients import TOKENS
from safetykit.bench.serve import served
from safetykit.bench.skeleton import arguments, run, say, write_results, write_table
from safetykit.bench.soak import make_export
from safetykit.export.runtime.onnx_vlm import OnnxVLM
from safetykit.toolkit.data.records import Record, load_records, subset
from safetykit.toolkit.data.sources import data_path
from safetykit.toolkit.model.asking import request_of
from safetykit.toolkit.model.endpoint import as_url

_SCRIPTS = Path(__file__).parent / "harness"
_LONGEST = 1800  # seconds that one may take
_SHOWN = 8  # lines of the transcript
_TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Harness:
    """A client that somebody else wrote.

    Attributes:
        script: asks with it; see ``bench/harness``.
        packages: what its environment holds, installed one line after the other.
        note: what was asked with it.
        without: packages that are taken out again: their published builds do not fit the CPU's torch.
    """

    script: str
    packages: tuple[tuple[str, ...], ...]
    note: str
    without: tuple[str, ...] = ()

    @property
    def node(self) -> bool:
        """Whether it runs in Node."""
        return self.script.endswith(".mjs")


HARNESSES = {
    "openai": Harness("ask_openai.py", (("openai==3.57.0",),), "whole and streamed, errors, 200 requests, 100 at once"),
    "inspect_ai": Harness(
        "ask_inspect_ai.py",
        (("inspect-ai==0.3.285", "openai==3.57.0"),),
        "own task, provider `openai-api`, scorer `match`",
    ),
    "promptfoo": Harness("ask_promptfoo.mjs", (("promptfoo@0.121.20",),), "provider `openai:chat`, assertion `equals`"),
    "garak": Harness(
        "ask_garak.py",
        ((_TORCH,), (_TORCH, "garak==0.17.1")),
        "generator `openai.OpenAICompatible`, four offline probes",
    ),
    "pyrit": Harness("ask_pyrit.py", ((_TORCH,), (_TORCH, "pyrit==1.1.0")), "`OpenAIChatTarget`, pictures as files"),
    "lmms_eval": Harness(
        "ask_lmms_eval.py",
        ((_TORCH,), (_TORCH, "lmms-eval==0.7.3", "filelock<4")),
        "model `openai`, own task from a local file, scorer `exact_match`",
        ("torchvision",),
    ),
}
_NPM = ("npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", "--prefix")


def questions(model: OnnxVLM, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Records as harnesses get them, with the export's own answers."""
    asked = [request_of(record) for record in records]
    answers = model.generate(asked, TOKENS)
    return [
        {
            "id": record.id,
            "prompt": request.prompt,
            "image": as_url(request.pictures[0]) if request.pictures else None,
            "expected": answer.text,
            "refused": answer.refused,
        }
        for record, request, answer in zip(records, asked, answers, strict=True)
    ]


def environment(name: str, folder: Path) -> Path:
    """The folder of a harness's environment, made where it is not there."""
    place, harness = folder / name, HARNESSES[name]
    ready = place / ("node_modules" if harness.node else "bin/python")
    if ready.exists():
        return place
    say(f"{name}: {place} is made")
    place.mkdir(parents=True, exist_ok=True)
    if not harness.node:
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    for packages in harness.packages:
        if harness.node:
            words = [
                "npm",
                "install",
                "--prefix",
                str(place),
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "--silent",
            ]
        else:
            words = [str(place / "bin/pip"), "install", "--quiet"]
        subprocess.run([*words, *packages], check=True)
    if harness.without:
        subprocess.run([str(place / "bin/pip"), "uninstall", "--yes", "--quiet", *harness.without], check=True)
    return place


def ask(name: str, place: Path, url: str, asked: Sequence[Mapping[str, Any]], work: Path) -> dict[str, Any]:
    """What a harness found; ``failed`` says why it found nothing."""
    work.mkdir(parents=True, exist_ok=True)
    job = {"url": f"{url}/v1", "model": "bench", "key": "none-is-asked-for", "max_tokens": TOKENS, "records": asked}
    (work / "job.json").write_text(json.dumps(job))
    result = work / "result.json"
    result.unlink(missing_ok=True)
    harness = HARNESSES[name]
    program = "node" if harness.node else str(place / "bin/python")
    # Not this process's own packages.
    clean = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [program, str(_SCRIPTS / harness.script), str(work / "job.json"), str(result)]
    done = subprocess.run(command, cwd=place, env=clean, capture_output=True, text=True, timeout=_LONGEST)
    (work / "output.log").write_text(done.stdout + done.stderr)
    if done.returncode or not result.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"failed": said[-1] if said else f"exit code {done.returncode}"}
    return {**json.loads(result.read_text()), **compared(asked, json.loads(result.read_text())["answers"])}


def compared(asked: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How many decisions and texts are the export's own; of those that a harness keeps."""
    found = {}
    for kind, ours, theirs in (("decisions", "refused", "refused"), ("texts", "expected", "text")):
        pairs = [(one[ours], answers[one["id"]][theirs]) for one in asked if one["id"] in answers]
        kept = [(one, other) for one, other in pairs if other is not None]
        found[kind] = [sum(one == other for one, other in kept), len(kept)]
    return found


def measured(export: Path, records: Sequence[Record], names: Sequence[str], envs: Path, out: Path) -> dict[str, Any]:
    """Every harness, one after the other, at one server."""
    model = OnnxVLM.from_pretrained(export)
    asked = questions(model, records)
    model.close()
    places = {name: environment(name, envs) for name in names}
    found = {}
    with served(export, 8, out / "serve.log") as url:
        for name in names:
            found[name] = ask(name, places[name], url, asked, out / name)
            say(f"{name}: {found[name].get('report') or found[name]['failed']}")
    pictures = sum(one["image"] is not None for one in asked)
    return {
        "records": len(asked),
        "pictures": pictures,
        "refused": sum(one["refused"] for one in asked),
        "harnesses": found,
    }


def table(results: Mapping[str, Any]) -> str:
    """A row a harness."""
    said = (
        f"{results['records']} test records, {results['pictures']} with a picture; the export itself refuses"
        f" {results['refused']} of them. `python bench/harnesses.py -o OUT --harness NAME` runs one."
    )
    rows = ["| client | asked with | decisions | texts | its own report |", "|---|---|---:|---:|---|"]
    for name, one in results["harnesses"].items():
        note = HARNESSES[name].note
        if "failed" in one:
            rows.append(f"| {name} | {note} | – | – | does not run offline: {_cell(one['failed'])} |")
            continue
        same = [f"{one[kind][0]} of {one[kind][1]}" if one[kind][1] else "–" for kind in ("decisions", "texts")]
        rows.append(f"| {name} {one['version']} | {note} | {' | '.join(same)} | {_cell(one['report'])} |")
    return "\n".join([said, "", *rows, "", *_transcript(results["harnesses"].get("openai", {}))])


def _transcript(found: Mapping[str, Any]) -> list[str]:
    """Some of what the official client asked and got, spread over the records."""
    said = found.get("transcript", [])
    if not said:
        return []
    rows = ["Of the `openai` client's transcript:", "", "| asked | picture | answer | `finish_reason` | risk |"]
    rows.append("|---|---|---|---|---:|")
    for one in said[:: max(1, len(said) // _SHOWN)][:_SHOWN]:
        picture = "yes" if one["picture"] else "no"
        cells = (_cell(one["asked"]), picture, _cell(one["text"]), one["reason"], f"{one['risk']:.2f}")
        rows.append(f"| {' | '.join(cells)} |")
    return [*rows, ""]


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def main(given: Sequence[str] | None = None) -> int:
    """Ask, and write the table; 1 if an answer that came is not the export's own."""
    parser = arguments(__doc__)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder for results, and for the default export")
    parser.add_argument("--export", type=Path, help="an export folder; by default that of bench/soak.py")
    parser.add_argument("--envs", type=Path, help="folder of the environments; OUT/envs by default")
    parser.add_argument("--data", default="reference", help="records; their test split is asked")
    parser.add_argument("--limit", type=int, default=40, help="of records, spread over the groups")
    parser.add_argument("--harness", choices=sorted(HARNESSES), action="append", help="repeat; by default all")
    options = parser.parse_args(given)
    options.out.mkdir(parents=True, exist_ok=True)
    export = options.export or make_export(options.out)
    records = subset(load_records(data_path(options.data), ["test"]), options.limit)
    envs = (options.envs or options.out / "envs").resolve()
    results = measured(export, records, options.harness or list(HARNESSES), envs, options.out.resolve())
    write_results(options.out / "clients.json", results)
    write_table(options.out / "clients.md", table(results))
    found = [one for one in results["harnesses"].values() if "failed" not in one]
    return int(any(one[kind][0] != one[kind][1] for one in found for kind in ("decisions", "texts")))


if __name__ == "__main__":
    run(main)
