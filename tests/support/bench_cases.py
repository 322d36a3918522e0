"""Every option of the benchmarks in a call that works, with what shows that it acted.

Small measurements run as they are. Of long ones the measuring function is replaced by one that notes what reached it,
so that the options, the order of the work and what is written are real. Words in braces are made by the test.
"""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

import safetykit

BENCH = Path(safetykit.__file__).parent / "bench"
PARTS = BENCH / "real" / "parts"


@dataclass
class Ran:
    """What a benchmark did: what it printed, where it was to write, and what reached its replaced functions."""

    out: str
    path: Path
    calls: dict[str, list[list[Any]]]

    @property
    def value(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.out)

    def read(self, name: str) -> Any:
        """A JSON file of its results."""
        return json.loads((self.path / name).read_text())

    def only(self, name: str) -> list[Any]:
        """The arguments of the one call of a replaced function, keyword arguments last."""
        (call,) = self.calls[name]
        return call


@dataclass(frozen=True)
class BenchCase:
    """A call of a benchmark.

    Attributes:
        bench: its module below ``bench``, such as ``modes`` or ``real.score``.
        line: what is typed after its name.
        check: what must be true of what it did.
        replaced: by dotted name in its module, what a function returns in the place of measuring; a function is called
            with the arguments.
        slow: it takes more than two seconds.
    """

    bench: str
    line: str
    check: Callable[[Ran], Any]
    replaced: Mapping[str, Any] = field(default_factory=dict)
    slow: bool = False

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)


NO_MODEL = {"VLM.from_pretrained": SimpleNamespace(fingerprint="f")}
SEEN = {"fingerprint": "f"}  # a checkpoint whose results are there
RATE = {"rate": 0.1, "low": 0.05, "high": 0.2, "n": 40, "count": 4}
ROW = {"metrics": {"attack_success": RATE, "over_refusal": RATE, "exact": RATE}, "detector_auroc": 0.9}

LATENCY = [
    BenchCase(
        "latency",
        "{base} {base} --data {records} --batch 1 --rounds 5 --decode-steps 2 --provider CPUExecutionProvider",
        lambda ran: (ran.value["rounds"], ran.value["decode_steps"], ran.value["batch"]) == (5, 2, 1),
    ),
    BenchCase(
        "modes",
        "--quick --layers 2 --width 128 --vocabulary 64 --adapted 1 --rank 2 --precision int4 --batch 2"
        " --prompt-tokens 4 --rounds 5 --decode-steps 1 --folder {out}",
        lambda ran: [
            ran.value["median_ms"]["unmodified"][0] > 0,
            ran.value["options"]["precision"] == "int4" and ran.value["options"]["adapted"] == 1,
            ran.value["options"]["batch"] == 2 and ran.value["options"]["rank"] == 2,
            (ran.path / "decoder.onnx").is_file(),
        ],
        slow=True,
    ),
    BenchCase(
        "detector_latency",
        "--quick --layers 4 --width 128 --vocabulary 64 --safety 1 --fused 2 --batch 2 --prompt-tokens 4 --rounds 5"
        " --decode-steps 1 --folder {out}",
        lambda ran: [
            (ran.value["options"]["safety"], ran.value["options"]["fused"], ran.value["options"]["batch"]) == (1, 2, 2),
            any(ran.path.iterdir()),
        ],
        slow=True,
    ),
    BenchCase(
        "decoders",
        "--out {out} --tokens 8 --layers 3 --width 64 --vocabulary 32 --threads 2 --rounds 6 --decode-steps 2"
        " --folder {folder}",
        lambda ran: [
            ran.only("write")[0].name == "folder" and ran.only("measure")[1] == 8,
            {name: getattr(ran.only("write")[1], name) for name in ("layers", "width", "vocabulary", "threads")}
            == {"layers": 3, "width": 64, "vocabulary": 32, "threads": 2},
            (ran.only("measure")[2].rounds, ran.only("measure")[2].decode_steps) == (6, 2),
            list(ran.read("decoders.json")["lengths"]) == ["8"],
        ],
        {"memory": 1.0, "write": {}, "opened": None, "measure": {}, "table": "| |"},
    ),
    BenchCase(
        "decoders",
        "--quick -o {out}",
        lambda ran: ran.only("write")[1].layers == 1 and ran.only("measure")[1] == 8,
        {"memory": 1.0, "write": {}, "opened": None, "measure": {}, "table": "| |"},
    ),
    BenchCase(
        "decoders",
        """--alone '["pytorch", "{out}", {"threads": 1}]'""",
        lambda ran: ran.only("alone")[0] == "pytorch" and ran.only("alone")[2].threads == 1,
        {"alone": 1.0},
    ),
    BenchCase(
        "fold",
        "{checkpoint} {base} --data {records} --rank 2 --batch 1 --rounds 5 --baked",
        lambda ran: [
            [call[2].name for call in ran.calls["measure"]] == ["folded", "baked"],
            all(len(call[4]) == 1 and call[5] == 5 for call in ran.calls["measure"]),
            all(call[1].interventions[0].tensors["basis"].shape[1] == 2 for call in ran.calls["measure"]),
        ],
        {"measure": {"nodes": {}}},
    ),
    BenchCase(
        "fold",
        "{checkpoint} {out} --data {records} --precision fp16",
        lambda ran: ran.only("export_base")[2] == "fp16" and ran.only("measure")[5] == 40,
        {"export_base": lambda vlm, out, precision: None, "read_manifest": SimpleNamespace(precision="fp16")}
        | {"count_nodes": 1, "write_folded": None, "measure": {}},
    ),
    BenchCase(
        "gpu",
        "{checkpoint} -o {out} --data {records} --adapter {adapter} --batch 1 --rounds 3"
        " --provider CPUExecutionProvider --precision fp16 --mode hot-swap",
        lambda ran: [
            json.loads(ran.path.read_text())["matrix"] == {"adapter": {"fp16, hot-swap": {"passed": True}}},
            ran.only("cell")[4:6] == ["fp16", "hot-swap"] and len(ran.only("cell")[6]) == 1,
            ran.only("cell")[7:] == ["CPUExecutionProvider", 3],
        ],
        {"cell": {"passed": True}, "export_base": None},
    ),
    BenchCase(
        "gpu",
        "{checkpoint} --out {out} --data {records} --adapter {adapter} --quick",
        lambda ran: ran.only("cell")[4:6] == ["fp32", "bake"] and ran.only("cell")[8] == 5,
        {"cell": {"passed": True}, "export_base": None},
    ),
]


def two_wheels(extra: str, folder: Path) -> list[Path]:
    """What pip would leave: safetykit's own wheel and another."""
    for name, size in (("safetykit", 100), ("numpy", 2_000_000)):
        with zipfile.ZipFile(folder / f"{name}-1-py3-none-any.whl", "w") as packed:
            packed.writestr("safetykit/toolkit/reference/mild/model.safetensors", bytes(size))
            packed.writestr("safetykit/cli.py", bytes(size // 2))
    return sorted(folder.glob("*.whl"))


SIZES = [
    BenchCase(
        "install",
        "--out {out} --extra cpu,fit",
        lambda ran: [
            ran.only("fetched")[0] == "cpu,fit",
            ran.read("install.json")["own"] == {"reference VLM": 100, "code": 50},
            "| `safetykit[cpu,fit]` | 2 | 3.0 MB | numpy 3.0 MB, safetykit" in (ran.path / "install.md").read_text(),
        ],
        {"fetched": two_wheels},
    ),
    BenchCase(
        "random_model",
        "{out} --layers 1 --width 64",
        lambda ran: ran.read("config.json")["text_config"]["hidden_size"] == 64,
    ),
    BenchCase(
        "size",
        "--out {out} --size 1x64 --scratch {folder}",
        lambda ran: [
            json.loads(ran.path.read_text())["sizes"] == [{"mb": 1}],
            ran.only("_measure")[0] == "1x64" and ran.only("_measure")[1].parent.name == "folder",
        ],
        {"_measure": {"mb": 1}},
    ),
    BenchCase(
        "size",
        "--step load --scratch {folder}",
        lambda ran: ran.value == {"mb": 1} and ran.only("_step")[0] == "load",
        {"_step": {"mb": 1}},
    ),
    BenchCase(
        "memory",
        "--out {out} --size tiny --layout shards --precision int4 --scratch {folder}",
        lambda ran: [
            ran.only("_measured_layout")[:3] == ["tiny", "shards", ["int4"]],
            ran.only("_measured_layout")[3].parent.name == "folder",
            ran.read("memory.json") == {"tiny shards int4": {"mb": 1}},
        ],
        {"_measured_layout": [("tiny shards int4", {"mb": 1})], "table": "| |"},
    ),
    BenchCase(
        "memory",
        "-o {out} --export {checkpoint} --precision fp16",
        lambda ran: ran.value == {"mb": 1} and ran.only("measured")[2] == "fp16",
        {"measured": {"mb": 1}},
    ),
    BenchCase(
        "memory",
        "-o {out} --quick",
        lambda ran: {call[0] for call in ran.calls["_measured_layout"]} == {"tiny"},
        {"_measured_layout": [], "table": "| |"},
    ),
    BenchCase(
        "fit",
        "{checkpoint} --data {records} --method care --rounds 2",
        lambda ran: [
            ran.value["method"] == "care" and ran.only("times")[2:] == ["care", 2],
            [call[3] for call in ran.calls["peak_megabytes"]] == [0, 1, 2, 4, 8],
        ],
        {"times": {}, "peak_megabytes": {}},
    ),
    BenchCase(
        "fit",
        "{checkpoint} --data {records} --method care-kernel --one-fit 2",
        lambda ran: ran.only("one_fit")[2:] == ["care-kernel", 2],
        {"one_fit": None},
    ),
    BenchCase(
        "rounding",
        "{checkpoint} --data {records} --base-onnx {base} --records 1 --half",
        lambda ran: [
            ran.value["records"] == 1,
            0 < ran.value["pytorch"] < ran.value["pytorch_half"],
            0 < ran.value["onnx"] < 1e-3,
        ],
    ),
]

METHODS = [
    BenchCase(
        "vlm_guard",
        "--out {out} --checkpoint mild",
        lambda ran: ran.only("table")[0] == {"mild": {}} and (ran.path / "vlm_guard.md").read_text() == "| |",
        {**NO_MODEL, "skeleton.read_results": {"mild": {**SEEN, "variants": {}}}, "table": "| |"},
    ),
    BenchCase(
        "stack",
        "-o {out} --checkpoint severe",
        lambda ran: [
            ran.only("VLM.from_pretrained")[0].name == "severe",
            ran.read("stack.json")["severe"]["variants"] == {"TGA + SASA": {"rows": {}}},
        ],
        {**NO_MODEL, "trained": None, "stacked": None, "measure": {"rows": {}}, "table": "| |"},
    ),
    BenchCase(
        "care",
        "-o {out} --checkpoint severe",
        lambda ran: [
            list(ran.only("table")[0]) == ["severe"] and ran.only("sweep_of")[0] == "severe",
            list(ran.read("care.json")["severe"]["variants"]) == ["VLM-Guard", "undefended"],
        ],
        {
            "VLM.from_pretrained": SimpleNamespace(fingerprint="f", base=SimpleNamespace(n_layers=8)),
            "sweep_of": SimpleNamespace(table=dict),
            "map_of": None,
            "settings": (),
            "CareSolver": None,
            "export_base": None,
            "OnnxVLM.from_pretrained": None,
            "evaluate": SimpleNamespace(rows=[]),
            "SETTINGS": {"severe": SimpleNamespace(values=dict, fit=lambda vlm, records: None)},
            "measure": {"rows": {}},
            "table": "| |",
        },
    ),
    BenchCase(
        "tga",
        "-o {out} --checkpoint mild --arm lora --calibration --pytorch",
        lambda ran: [
            [call[1] for call in ran.calls["measure"]] == ["calibration"],
            ran.only("train_and_measure")[2] == "calibration" and ran.only("train_and_measure")[4] is True,
            list(ran.read("calibration.json")["mild"]["arms"]) == ["lora", "undefended"],
        ],
        {**NO_MODEL, "measure": {}, "train_and_measure": {}, "table": "| |"},
    ),
    BenchCase(
        "sasa",
        "-o {out} --checkpoint mild --pytorch",
        lambda ran: "exported" not in ran.calls and "SASA" in ran.read("sasa.json")["mild"]["detectors"],
        {
            **NO_MODEL,
            "states_of": None,
            "perceived": set(),
            "decide": [],
            "refusal_of": None,
            "rows_of": {},
            "measure": (SimpleNamespace(save=lambda *_, **__: None), {}),
            "exported": {},
            "table": "| |",
        },
    ),
    BenchCase(
        "summary",
        "--from {folder}",
        lambda ran: ran.only("gather")[0].name == "folder" and ran.only("write_results")[1] == {"rows": []},
        {"gather": {"rows": []}, "write_results": None, "read_results": {}, "table": "| |", "write_table": None},
    ),
    BenchCase(
        "diagnosis",
        "{checkpoint} --data {records} --out {out} --again",
        lambda ran: "on calibration pairs" in ran.value and len(ran.calls["timed"]) == 2 and ran.path.is_dir(),
        {
            **NO_MODEL,
            "timed": (
                SimpleNamespace(
                    info=SimpleNamespace(layers=SimpleNamespace(model_dump=lambda mode: {}), effects=()),
                    save=lambda folder, overwrite, beside: folder.mkdir(),
                ),
                {},
            ),
            "diagnosis_plots": (),
            "summary": {},
        },
    ),
    BenchCase(
        "matrix",
        "{out} --family qwen2_vl --method CARE --again int4 --work {folder}",
        lambda ran: [
            ran.only("measure")[:3] == ["qwen2_vl", ["CARE"], ["int4"]],
            ran.only("measure")[4].name == "folder" and ran.read("matrix.json") == {},
        ],
        {"measure": None, "table": "| |"},
    ),
    BenchCase("matrix", "{out} --table", lambda ran: "measure" not in ran.calls, {"measure": None, "table": "| |"}),
]

ELSEWHERE = [
    BenchCase(
        "int4",
        "{checkpoint} --data {records} --out {out} --variants 'symmetric 32' --confirm 'symmetric 32' --methods sasa"
        " --settings {base} --records 2 --read 1 --fit-records 3 --max-new-tokens 4 --tokens 5 --rounds 6"
        " --decode-steps 7",
        lambda ran: [
            {name: getattr(ran.only("Laboratory")[0], name) for name in ("records", "read", "fit_records")}
            == {"records": 2, "read": 1, "fit_records": 3},
            ran.only("Laboratory")[0].methods == ["sasa"],
            ran.only("Laboratory")[0].confirm == ran.only("Laboratory")[0].variants == ["symmetric 32"],
            ran.only("Laboratory")[0].decode_steps == 7,
            ran.only("table")[0]["options"] == {"max_new_tokens": 4, "tokens": 5, "rounds": 6},
        ],
        {
            "Laboratory": lambda options: SimpleNamespace(calibration=[], test=[], full=options.settings),
            "measure_variants": None,
            "measure_speed": None,
            "confirm": None,
            "measure_flips": None,
            "table": "| |",
        },
    ),
    BenchCase(
        "int4",
        "reference:mild --data {records} -o {out} --settings {base} --quick",
        lambda ran: ran.only("Laboratory")[0].records == 8 and ran.only("Laboratory")[0].methods == ["vlm-guard"],
        {
            "Laboratory": lambda options: SimpleNamespace(calibration=[], test=[], full=options.settings),
            "measure_variants": None,
            "measure_speed": None,
            "confirm": None,
            "measure_flips": None,
            "table": "| |",
        },
    ),
    BenchCase(
        "recalibrate",
        "--out {out} --records 3",
        lambda ran: len(ran.calls["measure"]) == 2 and all(len(call[4]) == 3 for call in ran.calls["measure"]),
        {
            **NO_MODEL,
            "write_base": None,
            "adapters": {"vlm-guard": None},
            "METRICS": (),
            "measure": {"flips": 0, "opened": 0, "closed": 0},
        },
    ),
    BenchCase(
        "retrieval",
        "latency {checkpoint} --base {base} --sizes 2 4 --rounds 3 -k 1",
        lambda ran: ran.value == {"ms": 1} and ran.only("latency")[2:] == [[2, 4], 3, 1],
        {"latency": [{"ms": 1}]},
    ),
    BenchCase(
        "retrieval",
        "build {checkpoint} --embedded 5 --drawn 6",
        lambda ran: ran.value == {"s": 1} and ran.only("build")[1:] == [5, 6],
        {"build": [{"s": 1}]},
    ),
    BenchCase(
        "interop_in",
        "--out {out} --optimum python-of-optimum --records 3 --only optimum-fp32 --sasa {adapter}",
        lambda ran: [
            ran.only("build")[0] == "optimum-fp32" and ran.only("build")[3] == "python-of-optimum",
            len(ran.only("decide")[1]) == 3,
            list(ran.read("interop_in.json")["exports"]) == ["optimum-fp32/sasa", "optimum-fp32/vlm-guard"],
            ran.only("through_optimum")[3] == "python-of-optimum",
        ],
        {
            **NO_MODEL,
            "VLMGuard.fit": None,
            "save_tower": None,
            "build": None,
            "bare": None,
            "decide": [],
            "rates": {},
            "OnnxVLM.from_pretrained": None,
            "measure": {},
            "through_optimum": {},
            "table": "| |",
        },
    ),
    BenchCase(
        "interop_out",
        "{base} --base {base} --records 2 --max-new-tokens 3 --out {out}",
        lambda ran: [
            set(json.loads(ran.path.read_text())) == set(ran.value) and "undefended" in ran.value,
            len(ran.only("measure")[1]) == 2 and ran.only("measure")[2] == 3,
        ],
        {"measure": {}},
    ),
    BenchCase(
        "standalone",
        "{base} --python other-python --records 2 --max-new-tokens 3 --out {out}.json",
        lambda ran: ran.only("measure")[1] == "other-python" and [len(ran.only("measure")[2])] == [2],
        {"measure": {}, "table": "| |"},
    ),
]

SAVED = SimpleNamespace(save_pretrained=lambda folder: None, parameters=tuple, named_parameters=tuple)
WHITE = Image.new("RGB", (8, 8), "white")
NO_RATE = SimpleNamespace(rate=0.0, low=0.0, high=0.0, n=1, model_dump=dict)

REAL = [
    BenchCase(
        "real.fetch",
        "{folder} --no-stamps",
        lambda ran: len(ran.calls["fetch_wheel"]) > 1 and "fetch_npm" in ran.calls and "fetch_debian" not in ran.calls,
        {"fetch_wheel": None, "fetch_npm": None, "fetch_debian": None},
    ),
    BenchCase(
        "real.align",
        "{folder} --before",
        lambda ran: len(ran.calls["measured"]) == 2 and ran.value == {"refused": 1},
        {
            "all_prompts": [],
            "write_split": None,
            "write_heldout": [],
            "second_round": [],
            "third_round": [],
            "load_language": (SimpleNamespace(), SimpleNamespace(pad_token_id=0)),
            "own_answers": {},
            "willing_answers": {},
            "get_peft_model": SAVED,
            "train": None,
            "turns_of": [],
            "merge_language": None,
            "measured": {"refused": 1},
        },
    ),
    BenchCase(
        "real.assemble",
        "{folder} --with-parts {parts}",
        lambda ran: [
            ran.value["model"].endswith("folder/model"),
            ran.only("assemble")[1:3]
            == [
                json.loads((ran.only("assemble")[3] / "parts.json").read_text())[name]
                for name in ("image_size", "layer")
            ],
        ],
        {"prove_mapping": {"relative": 0.0}, "assemble": (SAVED, SAVED)},
    ),
    BenchCase(
        "real.publish",
        "{folder} -o {parts}",
        lambda ran: (
            ran.value["same"]
            and ran.only("assemble.main")[0][1:] == ["--with-parts", ran.only("collect")[1].as_posix()]
        ),
        {"collect": None, "assemble.main": None, "fingerprint": "f"},
    ),
    BenchCase(
        "real.publish",
        "{folder} -o {parts} --check",
        lambda ran: ran.value["same"] and "collect" not in ran.calls,
        {"collect": None, "fingerprint": lambda model: json.loads((PARTS / "parts.json").read_text())["fingerprint"]},
    ),
    BenchCase(
        "real.probe",
        "{folder} --things 1",
        lambda ran: [len(call[1]) for call in ran.calls["shown"]] == [1, 1],
        {
            "EmojiSets": SimpleNamespace(svg=lambda thing, name: True),
            "things": ["a", "b", "c"],
            "shown": ([], []),
            "load_tower": None,
            "pooled": dict.fromkeys(range(20)),
            "named": np.ones(1),
        },
    ),
    BenchCase(
        "real.tune",
        "{folder} --steps 3 --minutes 2 --lora-rate 4e-4 --threads 1 --bfloat16",
        lambda ran: [
            (ran.only("tune")[0].steps, ran.only("tune")[0].minutes, ran.only("tune")[0].lora_rate) == (3, 2, 4e-4),
            ran.only("tune")[0].bfloat16 and ran.only("torch.set_num_threads") == [1],
        ],
        {"tune": None, "torch.set_num_threads": None},
    ),
    BenchCase(
        "real.score",
        "{folder} --limit 3 --captions 2",
        lambda ran: [
            [call[3] for call in ran.calls["twins"]] == [3, 3] and ran.only("text_groups")[1] == 3,
            [len(call[1]) for call in ran.calls["said"]] == [2, 1, 0],
        ],
        {
            **NO_MODEL,
            "EmojiSets": SimpleNamespace(picture=lambda thing, name: WHITE),
            "twins": {},
            "objects": [],
            "things": [SimpleNamespace(name="apple", held_out=False)] * 5,
            "said": lambda vlm, requests, tokens: ["an apple"] * len(requests),
            "Rate.of": NO_RATE,
            "text_groups": {},
        },
    ),
    BenchCase(
        "real.redteam",
        "{folder} --out {out} --prompts {records}",
        lambda ran: (
            ran.value == {"n": 1} and [path.name for path in ran.only("write")] == ["folder", "out", "records.jsonl"]
        ),
        {"write": {"n": 1}},
    ),
    BenchCase(
        "real.judge",
        "{folder} --out {out}",
        lambda ran: json.loads(ran.path.read_text()) == ran.value == {"agreement": 1},
        {"validate": {"agreement": 1}},
    ),
    BenchCase("real.gates", "{folder} --out {out}", lambda ran: json.loads(ran.path.read_text())["arms"] == {}),
    BenchCase(
        "real.measure",
        "{folder} --out {out} --arms sasa --precision int4 --recalibrate --model {folder} --data {records} --limit 2"
        " --no-judge --no-latency",
        lambda ran: [
            ran.only("measure_precision")[1:] == ["sasa", "int4"],
            ran.read("sasa-int4-recalibrated.json")["identity"] == ["i"],
            (ran.only("Bench")[0].model.name, ran.only("Bench")[0].data.name) == ("folder", "records.jsonl"),
            ran.only("Bench")[0].limit == 2 and ran.only("Bench")[0].no_judge and ran.only("Bench")[0].no_latency,
        ],
        {"Bench": SimpleNamespace(identity=["i"]), "measure_precision": {}},
    ),
    BenchCase(
        "real.card",
        "--results {results} --out {out} --page {page}",
        lambda ran: [
            ran.path.read_text() == (BENCH.parent / "model_cards/real-smollm2-135m-vit-s.md").read_text(),
            ran.path.with_name("page.md").read_text() == (BENCH.parent / "docs/results.md").read_text(),
        ],
    ),
    BenchCase("real.card", "--check", lambda ran: ran.out == ""),
]

BENCHES = [*LATENCY, *SIZES, *METHODS, *ELSEWHERE, *REAL]
