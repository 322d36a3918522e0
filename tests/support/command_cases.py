"""Every option of the command line in a command that works, with what shows that it acted.

The tests run each line; the census reads from the lines which options and values are passed. Words in braces are made
by the :class:`~workshop.Workshop`; ``{out}`` is where the command writes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from case import Case
from fit_cases import FITS, SPREAD, UNPACKED
from workshop import DEMO, Outcome, Workshop

EXPORT = "export {model} --base-onnx {base} -o {out} --json"


def manifest(done: Outcome) -> dict[str, Any]:
    return json.loads((done.path / "safetykit.json").read_text())


def arranged(layout: str) -> Callable[[Outcome, Workshop], Any]:
    return lambda done, made: manifest(done)["layout"] == layout and done.value["parity"]["passed"]


def is_the_map(done: Outcome) -> bool:
    """What was printed is what the folder holds, and the command that comes next."""
    from safetykit.toolkit.diagnosis import ChannelMap

    value = {**done.value}
    told = value.pop("map") == str(done.path) and f"--map {done.path}" in value.pop("next")
    return told and value == ChannelMap.load(done.path).info.model_dump(mode="json")


EXPORTS = [
    Case("export {tiny} --out {out} --onnx --json", lambda done, made: (done.path / "decoder.onnx").is_file()),
    Case(
        f"{EXPORT} --adapter {{guard}} --mode bake --precision fp32"
        f" --layout onnx --canaries 2 --data {{records}} --split calibration --limit 6 "
        "--max-new-tokens 4 --max-flips 0.5 --parity-rows 2 --provider CPUExecutionProvider"
        " --base-model me/mine --base-license mit",
        lambda done, made: [
            done.value["parity"]["tolerances"]["flips"] == 0.5,
            [one["case"] for one in done.value["parity"]["checks"] if one["kind"] == "logits"]
            == ["2 rows padded, mixed"],
            "on at most 2 prompts end to end" in (done.path / "README.md").read_text(),
            done.value["comparison"]["before"]["split"] == "calibration",
            done.value["comparison"]["before"]["max_new_tokens"] == 4,
            "me/mine" in (done.path / "README.md").read_text(),
            len(json.loads((done.path / "canary.json").read_text())["canaries"]) == 2,
            "license: mit" in (done.path / "README.md").read_text(),
        ],
    ),
    Case(
        "export {tiny} -o {out} --json --precision fp16 --data {records} --split fit --limit 4 --max-new-tokens 2",
        lambda done, made: manifest(done)["precision"] == "fp16",
    ),
    Case(
        "export {model} -o {out} --json --adapter {guard} --precision int4 --data {records} --rounding k-quant"
        " --block-size 16 --head-8bit --split test --limit 8 --max-new-tokens 8 --recalibrate --max-flips 1",
        lambda done, made: [
            manifest(done)["precision"] == "int4",
            manifest(done)["int4"] == {"rounding": "k-quant", "block_size": 16, "head_8bit": True},
            manifest(done)["recalibrated"],
            done.value["parity"]["flipped"]["records"] == 8,
        ],
    ),
    Case(
        "export {model} --base-onnx {int4_base} -o {out} --json --adapter {rounded_guard} --precision int4",
        lambda done, made: manifest(done)["adapters"][0]["base"]["on"] and done.value["parity"]["passed"],
    ),
    *(
        Case(
            f"export {{tiny}} -o {{out}} --json --precision int4 --rounding {rounding}",
            lambda done, made, rounding=rounding: manifest(done)["int4"]["rounding"] == rounding,
        )
        for rounding in ("symmetric", "asymmetric")
    ),
    Case(
        "export {model} --base-onnx {int8_base} -o {out} --json --adapter {guard} --precision int8",
        lambda done, made: manifest(done)["precision"] == "int8",
    ),
    Case(
        "export {model} -o {out} --json --adapter {affine} --mode fold",
        lambda done, made: manifest(done)["mode"] == "fold",
    ),
    Case(f"{EXPORT} --adapter {{guard}} --mode hot-swap", lambda done, made: manifest(done)["mode"] == "hot-swap"),
    Case(f"{EXPORT} --adapter {{held_guard}} --layout transformers.js", arranged("transformers.js")),
    Case(f"{EXPORT} --adapter {{sasa}} --enforce --layout genai", arranged("genai")),
    Case(f"{EXPORT} --adapter {{guard}} --layout triton", arranged("triton")),
    Case(
        f"{EXPORT} --adapter {{guard}} --device cpu --dtype bfloat16 --data {{unpacked}} --limit 4 --max-new-tokens 2"
        f" --batch-size 2 --max-flips 1 {UNPACKED}",
        lambda done, made: [
            done.value["comparison"]["data"]["counts"]["bad rows left out"] == 1,
            "records, 1 bad rows left out" in (done.path / "README.md").read_text(),
            done.value["parity"]["reference"] == {"device": "cpu", "dtype": "bfloat16", "weights": "bfloat16"},
            json.loads((done.path / "export_options.json").read_text())["batch_size"] == "2",
        ],
    ),
    Case(f"{EXPORT} {SPREAD}", lambda done, made: done.value["parity"]["reference"]["dtype"] == "float32"),
    Case(
        f"{EXPORT} --adapter {{external}} --external-index {{index}}", lambda done, made: done.value["parity"]["passed"]
    ),
    Case(
        "export reference:severe -o {taken} --json --adapter {guard} --allow-wrong-base --overwrite",
        lambda done, made: manifest(done)["wrong_base_allowed"],
    ),
    Case(
        f"{EXPORT} --adapter {{guard}} --adapter {{probe}} --allow-uncorrected-detector",
        lambda done, made: (
            "uncorrected" in json.dumps(manifest(done)) or "not fitted under" in (done.path / "README.md").read_text()
        ),
    ),
]

EVAL = "eval {model} --data {records} --json --limit 4 --max-new-tokens 4"
SERVE = "serve {export} --check --json --port 0"
RUN = "run {export} --prompt 'what is this ?' --json"


DATA = [
    Case(
        "data import figstep {figstep} -o {out} --split calibration --limit 1 --images {drawn_steps} --json",
        lambda done, made: done.value["counts"] == {"calibration/typographic/harmful": 1},
    ),
    Case(
        "data import auto {figstep} -o {taken} --split fit --overwrite --json",
        lambda done, made: [done.value["importer"] == "figstep", (done.path / "records.jsonl").is_file()],
    ),
    Case(
        "data import csv {table} -o {out} --column prompt=asked --column image=shown --label harmful --category things"
        " --split test --skip-bad-rows --json",
        lambda done, made: [
            done.value["counts"] == {"test/text/harmful": 1},
            done.value["left_out"] == 1,
            '"category":"things"' in (done.path / "records.jsonl").read_text(),
        ],
    ),
    Case(
        "data import csv {table} -o {out} --prompt 'what is this ?' --label harmless --json",
        lambda done, made: done.value["counts"] == {"test/text/harmless": 2},
    ),
    Case("data check {records} --json", lambda done, made: not done.value["faults"]),
    Case(
        "data split {begun} -o {taken} --by group --shares 50,25,25 --seed 3 --overwrite --json",
        lambda done, made: [done.value["seed"] == 3, sum(done.value["counts"].values()) == 24],
    ),
    *(
        Case(f"data split {{begun}} -o {{out}} --by {by} --shares 100,0,0 --json", lambda done, made: done.value["by"])
        for by in ("category", "pair")
    ),
    Case("data show {begun} -o {out} --limit 5 --json", lambda done, made: done.value["shown"] == 5),
    Case("data show {begun} -o {drawn_sheet} --overwrite --json", lambda done, made: done.value["shown"] == 24),
    Case("data init {taken} --overwrite --json", lambda done, made: done.value["count"] == 24),
]

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
        "run {export} --messages {conversation} --truncate --max-prompt-tokens 12 --max-new-tokens 3 --json",
        lambda done, made: [
            [one["prompt"] for one in done.value] == ["is it dangerous ?"],
            (done.value[0]["dropped_turns"], done.value[0]["dropped_pictures"]) == (2, 1),
            "its first 2 turns were dropped, with 1 of its pictures" in done.err,
        ],
    ),
    Case(
        f"{RUN} --image {{picture}} --system 'is it dangerous ?' --max-prompt-tokens 64",
        lambda done, made: done.value[0]["text"],
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
        f"{SERVE} --host 127.0.0.1 --name mine --max-batch 3 --max-queue 5 --max-new-tokens 7 --max-pictures 2"
        " --max-pixels 90000 --max-body 70000 --timeout 9 --drain 4 --canary --log-prompts"
        " --provider CPUExecutionProvider --max-prompt-tokens 64 --api-key-file {keys}",
        lambda done, made: (
            [
                done.value[name] == value
                for name, value in {
                    "model": "mine",
                    "keys": 1,
                    "max_batch": 3,
                    "max_queue": 5,
                    "max_new_tokens": 7,
                    "max_pictures": 2,
                    "max_pixels": 90000,
                    "max_body": 70000,
                    "max_prompt_tokens": 64,
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
        "serve {swappable} --check --json --port 0 --host 0.0.0.0 --allow-anonymous --allow-shadow"
        " --adapter same={swappable} --swap {other_guard} --swap {probe} --allow-uncorrected-detector",
        lambda done, made: [
            done.value["adapters"] == ["on", "same"],
            done.value["shadow"],
            done.value["keys"] == 0 and done.value["url"].startswith("http://0.0.0.0:"),
        ],
    ),
    Case(
        "serve {external_export} --check --json --port 0 --external-index {index}",
        lambda done, made: done.value["threshold"] is None,
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
]

CASES = [*FITS, *EXPORTS, *DATA, *OTHERS]
