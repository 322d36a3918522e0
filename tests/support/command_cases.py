"""Every option of the command line in a command that works, with what shows that it acted.

The tests run each line; the census reads from the lines which options and values are passed. Words in braces are made
by the :class:`~workshop.Workshop`; ``{out}`` is where the command writes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from asking_cases import ASKING, RUN
from attack_cases import ATTACKS
from calibrate_cases import CALIBRATIONS
from case import Case
from data_cases import DATA
from export_cases import EXPORTS
from fit_cases import FITS
from fit_checks import SPREAD, UNPACKED
from workshop import DEMO, Outcome


def is_the_map(done: Outcome) -> bool:
    """What was printed is what the folder holds, and the command that comes next."""
    from safetykit.toolkit.diagnosis import ChannelMap

    value = {**done.value}
    told = value.pop("map") == str(done.path) and f"--map {done.path}" in value.pop("next")
    return told and value == ChannelMap.load(done.path).info.model_dump(mode="json")


def answers(done: Outcome) -> list[str]:
    """What an evaluation that was written says that was answered."""
    return [item["text"] for item in json.loads(done.path.read_text())["decisions"]]


EVAL = "eval {model} --data {records} --json --limit 4 --max-new-tokens 4"
SERVE = "serve {export} --check --json --port 0"

OTHERS = [
    Case("inspect {model} --json", lambda done, made: done.value["n_layers"] == 8 and not done.value["fingerprint"]),
    Case("inspect {model} --fingerprint --json", lambda done, made: len(done.value["fingerprint"]) == 64),
    Case("doctor --json", lambda done, made: done.value["providers"]["CPUExecutionProvider"]),
    Case(
        "diagnose {model} --data {records} -o {taken} --budget 4000"
        " --pairs 8 --neurons 2 --batch-size 8 --seed 3 --overwrite --json --device cpu --dtype float32",
        lambda done, made: [
            done.value["effects"]["visual"]["neurons"],
            done.value["hyperparameters"]["batch_size"] == 8,
            done.value["base"]["ran"]["dtype"] == "float32",
        ],
    ),
    Case(
        f"diagnose {{model}} --data {{unpacked}} -o {{out}} --pairs 8 --neurons 0 {SPREAD} {UNPACKED} --json",
        lambda done, made: [
            done.value["hyperparameters"]["batch_size"] == 16,
            "bad rows left out: 1" in done.err,
        ],
    ),
    Case(
        f"{EVAL} --adapter {{guard}} --split calibration --system 'is it dangerous ?' -o {{out}}",
        lambda done, made: [
            done.value["split"] == "calibration",
            done.value["system"],
            done.value["max_new_tokens"] == 4,
            len(json.loads(done.path.read_text())["decisions"]) == 4,
        ],
    ),
    Case(
        f"{EVAL} --split fit --device cpu --dtype bfloat16 --batch-size 2",
        lambda done, made: [done.value["split"] == "fit", done.value["ran"]["dtype"] == "bfloat16"],
    ),
    Case(
        f"{EVAL} --judge phrases --judge classifier:{{classifier}} --labels {{labels}} --judge-device cpu"
        " --judge-dtype float32 -o {out}",
        lambda done, made: [
            done.value["judge"] == "phrases",
            done.value["throughput"]["records"] == 4,
            [one["judge"] for one in done.value["judged"]] == ["phrases", f"classifier:{made['classifier']}"],
            [one["other"] for one in done.value["agreement"]][1:] == ["people", "people"],
            {one["outcome"] for one in json.loads(done.path.read_text())["decisions"]} <= {"refused", "answered"},
        ],
    ),
    Case(
        "judge {evaluation} --data {unpacked} --judge learned --judge classifier:{classifier} --labels {labels}"
        " --judge-device cpu --judge-dtype float32 -o {taken_file} --overwrite --skip-bad-rows --workers 2 --json",
        lambda done, made: [
            done.value["judge"] == "learned",
            len(json.loads(done.path.read_text())["judged"][0]["scores"]) > 0,
            len(done.value["agreement"]) == 3,
        ],
    ),
    Case(f"{EVAL} --device-map auto --max-memory cpu=4MiB", lambda done, made: done.value["ran"]["spread"]),
    Case(
        f"{EVAL} --split test {UNPACKED}".replace("{records}", "{unpacked}"),
        lambda done, made: [done.value["split"] == "test", done.value["skipped_rows"] == 1],
    ),
    Case(
        "eval {export} --data {records} --limit 4 --provider CPUExecutionProvider --max-prompt-tokens 256 --json",
        lambda done, made: done.value["rows"],
    ),
    Case(
        f"{EVAL} --defence system-prompt -o {{out}}",
        lambda done, made: [
            (done.value["defence"], done.value["calls"]) == ("system-prompt", 1),
            answers(done) != answers(made.run(f"{EVAL} -o {{out}}")),
        ],
    ),
    Case(
        "eval {export} --data {records} --limit 4 --max-new-tokens 4 --defence ecso --json",
        lambda done, made: [done.value["defence"] == "ecso", 1 < done.value["calls"] <= 4],
    ),
    Case(
        "eval {swappable} --data {records} --limit 4 --swap {other_guard} --swap {probe} --allow-uncorrected-detector"
        " -o {taken_file} --overwrite --json",
        lambda done, made: done.value["rows"],
    ),
    Case(
        "eval {external_export} --data {records} --limit 4 --external-index {index} --json",
        lambda done, made: done.value["rows"],
    ),
    Case(
        "eval reference:severe --data {records} --limit 4 --adapter {guard} --allow-wrong-base --json",
        lambda done, made: done.value["rows"],
    ),
    Case(
        f"{EVAL} --adapter {{guard}} --adapter {{probe}} --allow-uncorrected-detector",
        lambda done, made: done.value["rows"],
    ),
    Case(
        "sign {to_sign} --key {signing_key} --certificate {certificate} --chain {root} --json",
        lambda done, made: [done.value["kind"] == "adapter", os.path.isfile(done.value["signature"])],
    ),
    Case(
        "verify {export} --capturable --canary --json",
        lambda done, made: [done.value["capture"]["decoder.onnx"] == [], done.value["canary"]["asked"] == 6],
    ),
    Case(
        "verify {export} --model {model} --adapter {guard} --provider CPUExecutionProvider --json"
        " --device cpu --dtype bfloat16 --parity-rows 1",
        lambda done, made: [
            done.value["parity"]["reference"]["dtype"] == "bfloat16",
            done.value["parity"]["rows"] == 1,
            [one["case"] for one in done.value["parity"]["checks"] if one["kind"] == "logits"] == ["1 row, picture"],
        ],
    ),
    Case(
        f"verify {{export}} --model {{model}} --adapter {{guard}} {SPREAD} --json",
        lambda done, made: done.value["parity"]["passed"],
    ),
    Case(
        "verify {swappable} --model {model} --adapter {guard} --adapter {probe} --swap {other_guard} --swap {probe}"
        " --allow-uncorrected-detector --json",
        lambda done, made: done.value["swap"]["passed"],
    ),
    Case(
        "verify {external_export} --model {model} --adapter {external} --external-index {index} --json",
        lambda done, made: done.value["parity"]["passed"],
    ),
    Case(
        f"{RUN} --image {{picture}} --max-new-tokens 3 --provider CPUExecutionProvider",
        lambda done, made: len(done.value) == 1 and done.value[0]["text"],
    ),
    Case(
        f"{RUN} --image {{picture}} --temperature 5 --top-p 0.9 --seed 7 --max-new-tokens 12",
        lambda done, made: done.value != made.run(f"{RUN} --image {{picture}} --max-new-tokens 12").value,
    ),
    Case(
        "run {swappable} --prompt 'what is this ?' --swap {other_guard} --swap {probe} --allow-uncorrected-detector"
        " --json",
        lambda done, made: done.value[0]["text"],
    ),
    Case(
        "run {external_export} --prompt 'what is this ?' --image {picture} --external-index {index} --json",
        lambda done, made: done.value[0]["retrieved"],
    ),
    Case(
        f"{SERVE} --host 127.0.0.1 --name mine --max-batch 3 --max-queue 5 --threads 1 --max-new-tokens 7"
        " --max-pictures 2 --max-pixels 90000 --max-body 70000 --timeout 9 --drain 4 --canary --log-prompts"
        " --provider CPUExecutionProvider --max-prompt-tokens 64 --truncate --api-key-file {keys}",
        lambda done, made: (
            [
                done.value[name] == value
                for name, value in {
                    "model": "mine",
                    "keys": 1,
                    "max_batch": 3,
                    "max_queue": 5,
                    "threads": 1,
                    "max_new_tokens": 7,
                    "max_pictures": 2,
                    "max_pixels": 90000,
                    "max_body": 70000,
                    "max_prompt_tokens": 64,
                    "truncate": True,
                    "timeout": 9,
                    "drain": 4,
                    "log_prompts": True,
                    "providers": ["CPUExecutionProvider"],
                }.items()
            ]
            + [done.value["url"].startswith("http://127.0.0.1:"), "canaries are answered as they were" in done.err]
        ),
    ),
    Case(
        "serve {swappable} --check --json --port 0 --host 0.0.0.0 --allow-anonymous --allow-shadow --page --allow-off"
        " --adapter same={swappable} --swap {other_guard} --swap {probe} --allow-uncorrected-detector"
        " --allow-strength 2",
        lambda done, made: [
            done.value["max_strength"] == 2,
            done.value["adapters"] == ["on", "off", "same"],
            done.value["shadow"] and done.value["page"],
            done.value["keys"] == 0 and done.value["url"].startswith("http://0.0.0.0:"),
        ],
    ),
    Case(
        "serve {external_export} --check --json --port 0 --external-index {index}",
        lambda done, made: done.value["threshold"] is None,
    ),
    Case(
        f"{SERVE} --drift-window 40 --drift-false-alarms 0.05",
        lambda done, made: [
            [one["what"] for one in done.value["watched"]] == ["0.score"],
            (done.value["drift_window"], done.value["drift_false_alarms"]) == (40, 0.05),
        ],
    ),
    Case(
        "verify {export} --canary --server {served} --served-model served --json",
        lambda done, made: done.value["canary"]["providers"] == [made["served"]],
    ),
    Case(
        "eval {served} --data {records} --limit 4 --max-new-tokens 2 --served-model served --defence ecso --json",
        lambda done, made: [done.value["model"] == made["served"], done.value["calls"] > 1],
    ),
    Case("compare --init {out} --json", lambda done, made: not done.path.name and "grid" in done.value),
    Case(
        "compare --config {tiny_grid} -o {out} --plan --json",
        lambda done, made: [done.value["answers_left"] == 40, not done.path.exists()],
    ),
    Case(
        "compare --config {tiny_grid} -o {out} --jobs 2 --json",
        lambda done, made: (
            (done.path / "results.json").read_bytes() == (Path(made["comparison"]) / "results.json").read_bytes()
        ),
    ),
    Case("card {export} --check --json", lambda done, made: done.value["checked"]),
    Case(
        "lora {model} --adapter {affine} -o {taken} --overwrite --json --device cpu --dtype float32",
        lambda done, made: (done.path / "adapter_config.json").is_file(),
    ),
    Case(
        f"lora reference:severe --adapter {{affine}} --allow-wrong-base -o {{out}} --json {SPREAD}",
        lambda done, made: (done.path / "adapter_model.safetensors").is_file(),
    ),
    Case(
        "index build {captions} --model {model} --site decoder.layers.5 --batch-size 7 --keys float16 -o {out} --json"
        " --device cpu --dtype bfloat16",
        lambda done, made: [
            done.value["embedder"]["site"] == "decoder.layers.5",
            done.value["dtype"] == "float16",
            done.value["embedder"]["ran"] == "bfloat16",
            done.value["batch_size"] == 7,
        ],
    ),
    Case(
        f"index build {{captions}} --model {{model}} {SPREAD} -o {{out}} --json",
        lambda done, made: done.value["embedder"]["ran"] == "float32",
    ),
    Case(
        "index build {captions} --encoder {encoder} --keys float32 -o {taken} --overwrite --json",
        lambda done, made: done.value["embedder"]["kind"] != "vlm" and done.value["dtype"] == "float32",
    ),
    Case(
        "index search {index} --text 'a banana' --model {model} -k 2 --json --device cpu --dtype bfloat16",
        lambda done, made: done.value != made.run("index search {index} --text 'a banana' --model {model} -k 2 --json"),
    ),
    Case(
        f"index search {{index}} --text 'a banana' --model {{model}} -k 2 --json {SPREAD}",
        lambda done, made: len(done.value) == 2,
    ),
    Case(
        "index search {encoded_index} --text 'a banana' --encoder {encoder} --top 3 --json",
        lambda done, made: len(done.value) == 3,
    ),
    Case(
        "index search {index} --image {picture} --adapter {retrieval} --model {model} --json",
        lambda done, made: len(done.value) == 5,
    ),
    Case(DEMO, lambda done, made: done.value["checkpoint"] == "mild", kept="demo"),
    Case(
        "demo -o {taken} --checkpoint severe --overwrite --json",
        lambda done, made: done.value["checkpoint"] == "severe",
        few=True,
    ),
    Case(
        "quickstart reference:mild -o {out} --data reference --method vlm-guard --limit 48 --trials 2"
        " --max-new-tokens 8 --device cpu --dtype float32 --batch-size 8 --json",
        lambda done, made: [
            done.value["parity"]["passed"] and done.value["latency"]["decode"]["ratio"],
            done.value["fitted"][0]["sweep"]["trials"] == 2,
            done.value["comparison"]["before"]["rows"] == done.value["undefended"]["rows"],
            done.value["undefended"]["ran"]["dtype"] == "float32",
            made.run(f"verify {done.value['export']} --json").code == 0,
        ],
    ),
    Case(
        "quickstart {random} -o {out} --records 96 --limit 8 --max-new-tokens 2 --device-map auto --max-memory cpu=4MiB"
        " --json",
        lambda done, made: [
            done.value["stopped"] == "",  # so few texts tell nothing
            done.value["undefended"]["ran"]["spread"],
            len((done.path / "records" / "records.jsonl").read_text().splitlines()) == 96,
        ],
    ),
]

CASES = [*FITS, *EXPORTS, *DATA, *ATTACKS, *ASKING, *CALIBRATIONS, *OTHERS]
