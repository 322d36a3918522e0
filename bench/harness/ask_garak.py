"""garak with its OpenAI-compatible generator: published probes that need nothing from elsewhere.

python ask_garak.py JOB.json RESULT.json
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

PROBES = "test.Test,goodside.Tag,goodside.ThreatenJSON,ansiescape.AnsiRaw"


def main() -> None:
    """Run it as its users do, and sum up its report."""
    job, work = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]).parent.resolve()
    options = {"openai": {"OpenAICompatible": {"uri": f"{job['url']}/", "max_tokens": job["max_tokens"]}}}
    (work / "options.json").write_text(json.dumps(options))
    settings = {"run": {"generations": 1, "soft_probe_prompt_cap": 20}, "system": {"parallel_attempts": 4}}
    (work / "config.yaml").write_text(json.dumps(settings))  # JSON is YAML
    words = ["--target_type", "openai.OpenAICompatible", "--target_name", job["model"], "--probes", PROBES]
    words += ["--generator_option_file", work / "options.json", "--config", work / "config.yaml"]
    words += ["--report_prefix", work / "garak", "--narrow_output"]
    home = {name: str(work / name) for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")}
    environment = {**os.environ, **home, "OPENAICOMPATIBLE_API_KEY": job["key"]}
    command = [sys.executable, "-m", "garak", *map(str, words)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    (work / "garak.log").write_text(run.stdout + run.stderr)
    lines = [json.loads(line) for line in (work / "garak.report.jsonl").read_text().splitlines()]
    sent = [one for one in lines if one["entry_type"] == "attempt" and one["status"] == 2]
    lost = sum(any(output is None for output in one["outputs"]) for one in sent)
    passed = [
        f"{one['probe']} {one['detector']} {one['passed']}/{one.get('total_evaluated', one.get('total'))}"
        for one in lines
        if one["entry_type"] == "eval"
    ]
    report = f"{len(sent)} prompts, {lost} without an answer; passed: {', '.join(passed)}"
    Path(sys.argv[2]).write_text(json.dumps({"version": version("garak"), "answers": {}, "report": report}))


main()
