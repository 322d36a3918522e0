"""Benchmarks of the methods, and of graphs and runtimes of others."""

from __future__ import annotations

import json
from types import SimpleNamespace

from bench_case import NO_MODEL, SEEN, BenchCase

QUICK = {
    "undefended": {"rows": [{"group": "all", "metrics": {}}]},
    "comparison": None,
    "fitted": [],
    "method": None,
    "stopped": "It refuses nothing.",
    "obstacle": "",
    "passed": None,
    "wall": 7,
    "cores": 2,
}

SHARE = {"rate": 0.5, "low": 0.2, "high": 0.8}
MEASURED = {
    "settings": [{"layer": 3, "strength": 0.5}],
    "sweeps": [{"best": {}}],
    "rows": {group: {"metrics": dict.fromkeys(("attack_success", "over_refusal"), SHARE)} for group in ("all", "text")},
    "calls": 1.0,
}
METHODS = [
    BenchCase(
        "quickstart",
        "--out {out} --model tiny=there --records 100 --limit 9 --trials 3 --quick",
        lambda ran: [
            [call[0] for call in ran.calls["quickstart"]] == ["reference:mild", "there"],
            ran.calls["quickstart"][0][2] == ["--limit", "9", "--trials", "3"],
            ran.calls["quickstart"][1][2] == ["--limit", "9", "--trials", "3", "--records", "100"],
            list(ran.read("quickstart.json")) == ["reference VLM `mild`", "tiny"],
            "**tiny**: It refuses nothing; 7 s on 2 cores." in (ran.path / "quickstart.md").read_text(),
        ],
        {"quickstart": QUICK},
    ),
    BenchCase(
        "effects",
        "--out {out} --checkpoint mild --arm 'Guard: vlm-guard alpha=4' --arm 'nullsteer sweep layers=4-6 + one-pass'"
        " --arm 'Gated: one-pass layers=1-3 max-over-refusal=0.1 > nullsteer'",
        lambda ran: [
            [call[0].title for call in ran.calls["measure"]]
            == ["Guard", "nullsteer sweep layers=4-6 + one-pass", "Gated"],
            [(part.method.name, part.settings, part.sweep) for call in ran.calls["measure"] for part in call[0].parts]
            == [
                ("vlm-guard", {"alpha": "4"}, False),
                ("nullsteer", {"layers": "4-6"}, True),
                ("one-pass", {}, False),
                ("nullsteer", {}, False),
            ],
            [
                (gate.method.name, gate.settings, gate.budget.max_over_refusal)
                for gate in (ran.calls["measure"][-1][0].parts[0].gate,)
            ]
            == [("one-pass", {"layers": "1-3"}, 0.1)],
            list(ran.read("effects.json")["mild"]["arms"])
            == ["Gated", "Guard", "nullsteer sweep layers=4-6 + one-pass", "undefended"],
        ],
        {
            **NO_MODEL,
            "export_base": None,
            "OnnxVLM.from_pretrained": None,
            "decide": [],
            "figures": {},
            "measure": {"rows": {}},
            "table": "| |",
        },
    ),
    BenchCase(
        "attacks",
        "-o {out} --checkpoint mild --records 2 --steps 3 --arm 'Probe: one-pass'",
        lambda ran: [
            ran.only("Lab")[1:3] == [2, 3],
            ran.only("effects.fitted")[0].title == "Probe",
            list(ran.read("attacks.json")["mild"]["arms"]) == ["Probe", "undefended"],
        ],
        {
            **NO_MODEL,
            "Lab": None,
            "export_base": None,
            "export_onnx": None,
            "OnnxVLM.from_pretrained": None,
            "effects.fitted": [],
            "undefended": {},
            "defended": {},
            "robustness": {},
            "table": "| |",
        },
    ),
    BenchCase(
        "budgets",
        "-o {out} --checkpoint mild --seeds 3 --sweeps 1",
        lambda ran: [
            ran.only("known_of")[0] == "mild" and ran.only("known_of")[3] == ["VLM-Guard"],
            ran.only("measure")[1:3] == [3, ["VLM-Guard"]],
            (ran.path / "budgets.md").read_text() == "| |",
        ],
        {
            "known_of": SimpleNamespace(
                rows=[SimpleNamespace(id="h", label="harmful", group="g")], outcomes={"undefended": {"h": "answered"}}
            ),
            "measure": [],
            "table": "| |",
        },
    ),
    BenchCase(
        "baselines",
        "--out {out} --checkpoint mild",
        lambda ran: [
            [call[-1] for call in ran.calls["measure"]][:3] == ["", "ecso", "system-prompt"],
            [call[-2] for call in ran.calls["measure"]][:3] == [None, None, None],
            ran.calls["measure"][5][-2].parts[0].settings == {"variant": "random", "layer": "3", "strength": "0.5"},
            "| ecso | 50.0 % (20–80) |" in (ran.path / "baselines.md").read_text(),
            "refusal direction, added: layer 3, strength 0.5" in (ran.path / "baselines.md").read_text(),
        ],
        {**NO_MODEL, "measure": MEASURED},
    ),
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
    BenchCase(
        "types",
        "{out} --type florence2",
        lambda ran: "an encoder with a decoder" in ran.read("types.json")["florence2"]["built"]["reason"],
    ),
    BenchCase("types", "{out} --table", lambda ran: "one" not in ran.calls and "Of 0 types" in ran.out, {"one": None}),
]


ELSEWHERE = [
    BenchCase(
        "checkpoints",
        "{out} --kind fp32 --kind GPTQ",
        lambda ran: [
            [call[0] for call in ran.calls["tried"]] == ["fp32", "GPTQ"],
            ran.read("checkpoints.json")["GPTQ"] == {"inspect": "works", "fit": "Not so.", "export": "Not so."},
            "| GPTQ | works | no [1] | no [1] |" in (ran.path / "checkpoints.md").read_text(),
            "| AWQ | not tried" not in (ran.path / "checkpoints.md").read_text(),
        ],
        {"tried": lambda kind, plain, work: {"inspect": "works", "fit": "Not so.", "export": "Not so."}},
    ),
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
