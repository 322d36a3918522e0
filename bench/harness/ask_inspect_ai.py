"""inspect_ai with its provider for OpenAI's interface: a task of its own with pictures, scored by its `match`.

python ask_inspect_ai.py JOB.json RESULT.json
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

from inspect_ai import Task, eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate


def main() -> None:
    """Run the task, and hand on what its log says."""
    job = json.loads(Path(sys.argv[1]).read_text())
    samples = [Sample(id=one["id"], input=[message(one)], target=one["expected"]) for one in job["records"]]
    task = Task(dataset=MemoryDataset(samples), solver=generate(), scorer=match(location="exact"))
    model = get_model(f"openai-api/safetykit/{job['model']}", base_url=job["url"], api_key=job["key"])
    settings = {"temperature": 0, "max_tokens": job["max_tokens"], "max_connections": 8}
    (log,) = eval(task, model=model, log_dir=str(Path(sys.argv[2]).parent), display="none", **settings)
    if log.status != "success":
        raise SystemExit(log.error.message if log.error else log.status)
    answers = {
        one.id: {"text": one.output.completion, "refused": one.output.stop_reason == "content_filter"}
        for one in log.samples
    }
    metrics = {name: round(one.value, 3) for name, one in log.results.scores[0].metrics.items()}
    reasons = [one.output.stop_reason for one in log.samples]
    ends = ", ".join(f"{reasons.count(one)} × {one}" for one in sorted(set(reasons)))
    report = f"accuracy {metrics['accuracy']}; stop reasons {ends}"
    Path(sys.argv[2]).write_text(json.dumps({"version": version("inspect_ai"), "answers": answers, "report": report}))


def message(record: dict) -> ChatMessageUser:
    """A record as a user's message."""
    parts = [ContentText(text=record["prompt"])]
    if record["image"]:
        parts.insert(0, ContentImage(image=record["image"]))
    return ChatMessageUser(content=parts)


main()
