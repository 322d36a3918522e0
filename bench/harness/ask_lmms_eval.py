"""lmms-eval with its model `openai`: a task of its own whose records lie in a local file, scored by `exact_match`.

python ask_lmms_eval.py JOB.json RESULT.json
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

TASK = "safetykit_records"
FUNCTIONS = """
import base64, io
from PIL import Image


def pictures(doc):
    if not doc["image"]:
        return []
    return [Image.open(io.BytesIO(base64.b64decode(doc["image"].split(",")[1]))).convert("RGB")]


def question(doc, *given):
    return doc["prompt"]
"""
TEMPLATE = """
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function records.pictures
doc_to_text: !function records.question
doc_to_target: expected
generation_kwargs:
  max_new_tokens: {tokens}
  temperature: 0
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def main() -> None:
    """Run it as its users do, and sum up its results."""
    job, work = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]).parent.resolve()
    (work / "tasks").mkdir(exist_ok=True)
    (work / "tasks/records.py").write_text(FUNCTIONS)
    file = work / "records.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in job["records"]))
    text = TEMPLATE.format(task=TASK, file=file, tokens=job["max_tokens"])
    (work / f"tasks/{TASK}.yaml").write_text(text)
    arguments = f"model_version={job['model']},base_url={job['url']},api_key={job['key']},timeout=60"
    words = ["--model", "openai", "--model_args", arguments, "--tasks", TASK, "--include_path", work / "tasks"]
    words += ["--batch_size", 1, "--log_samples", "--output_path", work / "logs"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "home"), "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-m", "lmms_eval", *map(str, words)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    (work / "lmms_eval.log").write_text(run.stdout + run.stderr)
    found = sorted((work / "logs").rglob("*_results.json"))
    if not found:
        said = [line for line in (run.stdout + run.stderr).splitlines() if "Error" in line]
        raise SystemExit(said[-1] if said else f"exit code {run.returncode}")
    scores = json.loads(found[-1].read_text())["results"][TASK]
    lines = sorted((work / "logs").rglob(f"*samples_{TASK}.jsonl"))[-1].read_text().splitlines()
    answers = {}
    for sample in map(json.loads, lines):
        said = sample["filtered_resps"]
        text = said if isinstance(said, str) else said[0]
        answers[job["records"][sample["doc_id"]]["id"]] = {
            "text": text,
            "refused": None,
        }  # it keeps no reason of an end
    figures = f"exact_match {scores['exact_match,none']:.3f}"
    found = {"version": version("lmms-eval"), "answers": answers, "report": figures}
    Path(sys.argv[2]).write_text(json.dumps(found))


main()
