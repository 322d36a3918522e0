"""Every option of `safetykit export` in a command that works; see :mod:`command_cases`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from case import Case
from fit_checks import SPREAD, UNPACKED
from workshop import Outcome, Workshop


def manifest(done: Outcome) -> dict[str, Any]:
    return json.loads((done.path / "safetykit.json").read_text())


EXPORT = "export {model} --base-onnx {base} -o {out} --json"


def arranged(layout: str) -> Callable[[Outcome, Workshop], Any]:
    return lambda done, made: manifest(done)["layout"] == layout and done.value["parity"]["passed"]


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
        "export {tiny} -o {out} --json --precision fp16 --data {records} --split fit --limit 4 --max-new-tokens 2 "
        "--judge phrases --judge classifier:{sequence_judge} --judge-device cpu --judge-dtype float32",
        lambda done, made: [
            manifest(done)["precision"] == "fp16",
            [one["judge"] for one in done.value["comparison"]["after"]["judged"]][:2] == ["expected", "phrases"],
            len(done.value["comparison"]["after"]["agreement"]) == 3,
            "### By each judge" in (done.path / "README.md").read_text(),
        ],
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
    Case(
        f"{EXPORT} --adapter {{guard}} --layout triton",
        lambda done, made: [
            arranged("triton")(done, made),
            (done.path / "model_repository" / "chat" / "1" / "model.py").is_file(),
            "v2/models/chat/generate" in (done.path / "README.md").read_text(),
        ],
    ),
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
